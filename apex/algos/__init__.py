"""Algorithms: one file each. `base` says what an algorithm gives; the daemons know no more."""
