"""A whole suite on two cores, compared with separate acting and updating loops."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.run import cores
from benchmarks.run.daemons import Asker, Daemons, pong_run, until
from benchmarks.run.figures import Figure, figure, in_turn
from benchmarks.run.pong import NUM_ENVS, bare_acting, bare_updating, fill, record
from benchmarks.run.scenarios.actor import env_steps
from benchmarks.run.scenarios.learner import learner_steps
from benchmarks.run.workers import Worker

BATCH = 32
ITEMS = 10_000
SECONDS = 5.0
LIMIT = "both bare loops at once, one core each"
SETTINGS = (
    f"actor.num_envs={NUM_ENVS}", f"learner.batch_size={BATCH}", f"replay.min_size={ITEMS}",
    "replay.samples_per_insert=0",
)  # fmt: skip


def both_rates(asker: Asker, seconds: float, batch: int) -> list[float]:
    """Env steps and trained samples per second."""
    steps, steps_from = asker.counter(env_steps)
    updates, updates_from = asker.counter(learner_steps)
    time.sleep(seconds)
    last_updates, updates_to = asker.counter(learner_steps)
    last_steps, steps_to = asker.counter(env_steps)
    return [
        (last_steps - steps) / (steps_to - steps_from),
        (last_updates - updates) * batch / (updates_to - updates_from),
    ]


def measure(folder: Path) -> Sequence[Figure]:
    """Measure all cases."""
    run = pong_run(folder / "run", SETTINGS)
    with (
        Worker(bare_acting, cores.ACTING, run.path) as acting,
        Worker(bare_updating, cores.TRAINING, run.path, BATCH) as updating,
        Daemons(run) as daemons,
    ):
        daemons.replay(cores.OTHERS)
        learner = daemons.learner(cores.OTHERS, cores.TRAINING)
        fill(run, record(run, ITEMS // 2), ITEMS)
        actor = daemons.actor(cores.OTHERS)
        asker = daemons.asker("learner.params")
        until(lambda: env_steps(asker.status()) > 1000, "the actor steps")
        until(lambda: learner_steps(asker.status()) > 10, "the learner trains")

        def bare() -> list[float]:
            with learner.stopped(), actor.stopped():
                acting.begin(SECONDS)
                updating.begin(SECONDS)
                return [acting.rate(), updating.rate() * BATCH]

        pairs = in_turn(lambda: both_rates(asker, SECONDS, BATCH), bare)
        daemons.check()
    return [
        figure(name, unit, [(value[k], limit[k]) for value, limit in pairs], LIMIT, bar=0.85)
        for k, (name, unit) in enumerate(
            (("acting", "env steps/s"), ("learning, batch 32", "trained samples/s"))
        )
    ]
