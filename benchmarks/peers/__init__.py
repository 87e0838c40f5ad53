"""Benchmarks of apex beside other libraries that do the same work: `make bench-peers`."""
