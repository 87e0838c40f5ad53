"""A checkpoint of the learner and the replay server's contents on the disk, of one moment."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from apex.daemons.learner.parameter_server import ParamsServer, SnapshotAsker
from apex.daemons.learner.prefetcher import Prefetcher

REPLAY_SNAPSHOT_S = 30.0


class _Snapshot(NamedTuple):
    """One that is under way."""

    number: int
    askers: list[SnapshotAsker]
    checkpoint: Path | None
    learner_step: int
    deadline: float
    """Until which the replay server's answer is waited for."""


class Snapshots:
    """Takes snapshots, one at a time, and tells who asked when all is there.

    Args:
        save: writes a checkpoint; None when the disk refuses it.
    """

    def __init__(self, save: Callable[[], Path | None]) -> None:
        self._save = save
        self._asked = threading.Event()
        self._count = 0
        self._taken: _Snapshot | None = None

    @property
    def asked(self) -> bool:
        """Whether an operator waits for one that has not begun."""
        return self._asked.is_set()

    def ask(self) -> None:
        """An operator wants one; any thread may call it."""
        self._asked.set()

    def take(
        self, server: ParamsServer, prefetcher: Prefetcher, learner_step: int, now: float
    ) -> None:
        """Write a checkpoint, and have the replay server bring its contents to the disk."""
        self._asked.clear()
        askers = server.snapshot_begins()
        if self._taken is not None:
            askers += self._taken.askers  # they get this newer one
        self._count += 1
        prefetcher.snapshot(self._count)
        deadline = now + REPLAY_SNAPSHOT_S
        self._taken = _Snapshot(self._count, askers, self._save(), learner_step, deadline)

    def answer(self, server: ParamsServer, prefetcher: Prefetcher, now: float) -> None:
        """Tell who asked what is there, once the replay server has answered or is given up."""
        taken, answer = self._taken, prefetcher.saved
        if taken is None:
            return
        answered = answer is not None and answer.snapshot_id == taken.number
        if not answered and now < taken.deadline:
            return
        self._taken = None
        server.snapshot_taken(
            taken.askers,
            {
                "checkpoint": taken.checkpoint.name if taken.checkpoint is not None else None,
                "learner_step": taken.learner_step,
                "replay": answer.saved if answer is not None and answered else None,
            },
        )
