"""A whole suite, by default on two cores, compared with separate acting and updating loops."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from benchmarks.run import cores
from benchmarks.run.daemons import Asker, Daemons, pong_run, until
from benchmarks.run.figures import REPETITIONS, Figure, figure, in_turn
from benchmarks.run.pong import (
    NUM_ENVS,
    bare_acting,
    bare_updating,
    fill,
    record,
    synchronize,
)
from benchmarks.run.scenarios.actor import env_steps
from benchmarks.run.scenarios.learner import learner_steps
from benchmarks.run.workers import Worker, together

BATCH = 32
ITEMS = 10_000
SECONDS = 5.0
LIMIT = "the bare loops at once, one core each"
Inference = Literal["local", "central"]
SETTINGS = (
    f"actor.num_envs={NUM_ENVS}", f"replay.min_size={ITEMS}", "replay.samples_per_insert=0",
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


def measure(
    folder: Path,
    *,
    actors: int = 1,
    batch: int = BATCH,
    seconds: float = SECONDS,
    repetitions: int = REPETITIONS,
    inference: Inference = "local",
) -> Sequence[Figure]:
    """Measure all cases.

    Args:
        folder: for the run.
        actors: actors of the suite, and bare acting loops of its limit.
        batch: items per update.
        seconds: of each measurement.
        repetitions: measurements of the figures and of their limits.
        inference: where actions are computed. The limit is the same, and central inference, which
            may have a GPU, has no bar.
    """
    own = [f"learner.batch_size={batch}", f"actor.count={actors}", f"actor.inference={inference}"]
    run = pong_run(folder / f"run_{inference}", [*SETTINGS, *own])
    apart = cores.ACTING if actors == 1 else cores.OTHERS
    with ExitStack() as stack:
        acting = [stack.enter_context(Worker(bare_acting, apart, run.path)) for _ in range(actors)]
        updating = stack.enter_context(
            Worker(bare_updating, cores.TRAINING, run.path, batch, finish=synchronize)
        )
        daemons = stack.enter_context(Daemons(run))
        daemons.replay(cores.OTHERS)
        learner = daemons.learner(cores.OTHERS, cores.TRAINING)
        fill(run, record(run, ITEMS // 2), ITEMS)
        stepping = [daemons.actor(cores.OTHERS, index=index) for index in range(actors)]
        if inference == "central":
            stepping.append(daemons.inference(cores.OTHERS))
        asker = daemons.asker("learner.params")
        until(lambda: env_steps(asker.status()) > 1000 * actors, "the actors step")
        until(lambda: learner_steps(asker.status()) > 10, "the learner trains")

        def bare() -> list[float]:
            with ExitStack() as paused:
                for daemon in (learner, *stepping):
                    paused.enter_context(daemon.stopped())
                *steps, updates = together([*acting, updating], seconds)
                return [sum(steps), updates * batch]

        pairs = in_turn(lambda: both_rates(asker, seconds, batch), bare, repetitions)
        daemons.check()
    return figures(pairs, batch, inference)


def figures(
    pairs: Sequence[tuple[list[float], list[float]]], batch: int, inference: Inference
) -> Sequence[Figure]:
    """The acting and the learning half of measured pairs of rates and limits."""
    more, bar = ("", 0.85) if inference == "local" else (", central inference", None)
    return [
        figure(name + more, unit, [(value[k], limit[k]) for value, limit in pairs], LIMIT, bar=bar)
        for k, (name, unit) in enumerate(
            (("acting", "env steps/s"), (f"learning, batch {batch}", "trained samples/s"))
        )
    ]
