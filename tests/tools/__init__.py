"""Chaos, faults, floods, fuzzing, soaking, and the ledger that audits replay."""
