"""A learner fed by a replay server, compared with the same update on a batch in memory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from apex.data.chunks import Chunk
from benchmarks.run import cores
from benchmarks.run.daemons import Daemons, pong_run, until
from benchmarks.run.figures import REPETITIONS, Figure, figure, in_turn
from benchmarks.run.pong import bare_updating, fill, record, synchronize
from benchmarks.run.workers import Worker

ITEMS = 20_000
SECONDS = {32: 4.0, 128: 4.0, 512: 6.0}
BAR = 0.90 if torch.cuda.is_available() else 0.97
"""On a GPU the bar is lower because batches are also copied to it."""
LIMIT = (
    "the same update, replayed as a graph on one batch on the GPU without a wait"
    if torch.cuda.is_available()
    else "the same update on one batch in memory, one core"
)


def settings(batch_size: int) -> list[str]:
    """Settings of a learner that samples as fast as it can."""
    return [f"learner.batch_size={batch_size}", f"replay.min_size={ITEMS}",
            "replay.samples_per_insert=0"]  # fmt: skip


def learner_steps(status: dict[str, Any]) -> int:
    """Number of updates made."""
    return int(status["learner"]["learner_step"])


def recorded(folder: Path) -> list[Chunk]:
    """Random play to fill the table with, in a folder of its own."""
    return record(pong_run(folder / "record", settings(32)), ITEMS // 4)


def learning_figure(
    folder: Path,
    batch_size: int,
    chunks: list[Chunk],
    *,
    seconds: float,
    repetitions: int = REPETITIONS,
    more: Sequence[str] = (),
) -> Figure:
    """Updates per second at one batch size.

    Args:
        folder: for the run.
        batch_size: items per update.
        chunks: result of `recorded`.
        seconds: of each measurement.
        repetitions: measurements of the figure and of its limit.
        more: further settings of the run.
    """
    run = pong_run(folder / f"run_{batch_size}", [*settings(batch_size), *more])
    with (
        Worker(bare_updating, cores.TRAINING, run.path, batch_size, finish=synchronize) as bare,
        Daemons(run) as all_,
    ):
        all_.replay(cores.OTHERS)
        learner = all_.learner(cores.OTHERS, cores.TRAINING)
        asker = all_.asker("learner.params")
        fill(run, chunks, ITEMS)
        until(lambda: learner_steps(asker.status()) > 2, "the learner trains")

        def alone() -> float:
            with learner.stopped():
                return bare.measure(seconds)

        pairs = in_turn(lambda: asker.rate(learner_steps, seconds), alone, repetitions)
        all_.check()
    return figure(f"batch {batch_size}", "updates/s", pairs, LIMIT, bar=BAR)


def measure(folder: Path) -> Sequence[Figure]:
    """Measure all cases."""
    chunks = recorded(folder)
    return [
        learning_figure(folder, batch_size, chunks, seconds=seconds)
        for batch_size, seconds in SECONDS.items()
    ]
