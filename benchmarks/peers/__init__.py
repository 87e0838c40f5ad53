"""Measures apex beside other suites that do the same work, in one run: `make bench-peers`."""
