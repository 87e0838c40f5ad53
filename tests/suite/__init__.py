"""Tests of the executables, and of whole suites, as real processes."""
