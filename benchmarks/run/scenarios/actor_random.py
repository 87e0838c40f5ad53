"""An actor with random actions, compared with stepping alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks.run import cores
from benchmarks.run.figures import Figure
from benchmarks.run.pong import bare_stepping
from benchmarks.run.scenarios.actor import acting_figure
from benchmarks.run.workers import Worker

LIMIT = "AtariVectorEnv with random actions, one core"


def measure(folder: Path) -> Sequence[Figure]:
    """Measure all cases."""
    worker = partial(Worker, bare_stepping, cores.ACTING)
    return [acting_figure(folder, worker, "benchmarks.run.random_actor", LIMIT)]
