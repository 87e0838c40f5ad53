"""Equations: pure functions on tensors, one equation each, with its source.

`_tm1` marks what belongs to the step at which an action was chosen, `_t` what belongs to the
bootstrap step. Every function works row by row on a batch of size B.
"""
