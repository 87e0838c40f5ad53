"""Equations: pure functions on tensors, one equation each, with its source.

The suffix `_tm1` marks values at the step where the action was chosen, `_t` values at the
bootstrap step. B is the batch size; every result is per row.
"""
