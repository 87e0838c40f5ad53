"""Apex's DQN beside RLlib's: both cores, the same network and batch, both prioritized."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.training import FREE, compared, dqn_suites
from benchmarks.run.figures import Figure

BATCH = 32
SAMPLES_PER_STEP = 8
"""As in DQN's paper: a batch of 32 every 4 steps."""


def measure(folder: Path) -> Sequence[Figure]:
    """Measure all cases."""
    options = {
        "algorithm": "dqn", "batch": BATCH, "samples_per_step": SAMPLES_PER_STEP, "runners": 0,
        "num_envs": 8, "fragment": 4, "learners": 0, "threads": 2,
    }  # fmt: skip
    suites = dqn_suites(folder, BATCH, SAMPLES_PER_STEP)
    return compared(folder, "torch", "rllib", options, suites, unequal=[FREE])
