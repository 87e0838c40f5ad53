"""Measurements on a GPU machine that may have no network: `bash benchmarks/gpu/measure.sh`."""
