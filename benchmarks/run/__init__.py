"""Benchmarks of apex against the limits of the machine: `make bench`."""
