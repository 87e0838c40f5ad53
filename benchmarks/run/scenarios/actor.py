"""An actor that inserts into a replay server, compared with stepping and inference alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.run import cores
from benchmarks.run.daemons import Daemons, pong_run, until
from benchmarks.run.figures import Figure, figure, in_turn
from benchmarks.run.pong import NUM_ENVS, bare_acting
from benchmarks.run.workers import Worker

SECONDS = 4.0
NOT_LEARNING = ("replay.capacity=500000", "replay.min_size=500000", "replay.samples_per_insert=0")
LIMIT = "AtariVectorEnv and the network at the same batch, one core"


def acting_figure(folder: Path, worker: partial[Worker], actor_module: str, limit: str) -> Figure:
    """An actor's env steps, compared with those of a worker on the same core."""
    run = pong_run(folder / "run", [f"actor.num_envs={NUM_ENVS}", *NOT_LEARNING])
    with worker(run.path) as bare, Daemons(run) as daemons:
        daemons.replay(cores.TRAINING)
        daemons.learner(cores.TRAINING, ())
        actor = daemons.actor(cores.ACTING, actor_module)
        asker = daemons.asker("learner.params")
        until(lambda: env_steps(asker.status()) > 2000, "the actor steps")

        def alone() -> float:
            with actor.stopped():
                return bare.measure(SECONDS)

        pairs = in_turn(lambda: asker.rate(env_steps, SECONDS), alone)
        daemons.check()
    return figure(f"{NUM_ENVS} environments", "env steps/s", pairs, limit, bar=0.90)


def env_steps(status: dict[str, Any]) -> int:
    """Env steps of all actors, as of their last heartbeats."""
    return int(status["env_steps"])


def measure(folder: Path) -> Sequence[Figure]:
    """Measure all cases."""
    return [acting_figure(folder, partial(Worker, bare_acting, cores.ACTING), "", LIMIT)]
