"""Apex's IMPALA beside Sample Factory's APPO: both cores, the same network, rollouts and batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.training import compared, impala_suites
from benchmarks.run.figures import Figure

UNROLL, BATCH = 20, 320


def measure(folder: Path) -> Sequence[Figure]:
    """Measure all cases."""
    options = {
        "rollout": UNROLL, "batch": BATCH, "num_workers": 1,
        "num_envs_per_worker": 16, "worker_num_splits": 2,
    }  # fmt: skip
    suites = impala_suites(folder, UNROLL, BATCH)
    return compared(
        folder, "sample-factory", "sample_factory", options, suites, train_dir=str(folder)
    )
