"""Apex's DQN beside Stable-Baselines3's: both cores, the same network, batch and wrappers."""

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
        "threads": 2, "num_envs": 8, "samples_per_step": SAMPLES_PER_STEP, "batch": BATCH
    }  # fmt: skip
    suites = dqn_suites(folder, BATCH, SAMPLES_PER_STEP)
    return compared(folder, "torch", "sb3", options, suites, unequal=[FREE])
