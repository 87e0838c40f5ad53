"""Apex's IMPALA beside RLlib's: both cores, the same network, unrolls and batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.training import compared, impala_suites
from benchmarks.run.figures import Figure

UNROLL, BATCH = 20, 320


def measure(folder: Path) -> Sequence[Figure]:
    """Measure all cases."""
    options = {
        "algorithm": "impala", "batch": BATCH, "samples_per_step": 1, "runners": 2,
        "num_envs": 16, "fragment": UNROLL, "learners": 0, "threads": 1,
    }  # fmt: skip
    return compared(folder, "torch", "rllib", options, impala_suites(folder, UNROLL, BATCH))
