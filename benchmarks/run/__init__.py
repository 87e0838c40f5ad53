"""Measures apex against the limits of the machine, in one run: `make bench`."""
