"""Snapshots of a run: a learner checkpoint and the replay server's contents at one moment."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

from apex.daemons.learner.parameter_server import ParameterServer, SnapshotRequester
from apex.daemons.learner.prefetcher import Prefetcher
from apex.daemons.learner.trainer import Trainer

REPLAY_SNAPSHOT_S = 30.0


class _Snapshot(NamedTuple):
    """A snapshot in progress."""

    number: int
    requesters: list[SnapshotRequester]
    checkpoint: Path | None
    learner_step: int
    deadline: float
    """Time until which to wait for the replay server's reply."""


class Snapshots:
    """Takes snapshots, one at a time, and replies to their requesters.

    Args:
        trainer: writes the checkpoints.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._requested = threading.Event()
        self._count = 0
        self._in_progress: _Snapshot | None = None

    @property
    def requested(self) -> bool:
        """Whether an operator has requested a snapshot that has not begun."""
        return self._requested.is_set()

    def request(self) -> None:
        """Request a snapshot. Thread-safe."""
        self._requested.set()

    def take(self, server: ParameterServer, prefetcher: Prefetcher, now: float) -> None:
        """Write a checkpoint, and ask the replay server to write its contents to disk.

        Raises:
            DivergedError: the run diverged and cannot be rolled back.
        """
        self._requested.clear()
        requesters = server.take_snapshot_requesters()
        if self._in_progress is not None:
            requesters += self._in_progress.requesters  # they get this newer snapshot instead
        self._count += 1
        prefetcher.snapshot(self._count)
        path = self._trainer.save()
        learner_step = self._trainer.learner_step  # after saving, which may roll back
        deadline = now + REPLAY_SNAPSHOT_S
        self._in_progress = _Snapshot(self._count, requesters, path, learner_step, deadline)

    def answer(self, server: ParameterServer, prefetcher: Prefetcher, now: float) -> None:
        """Reply to the requesters once the replay server has replied or the deadline is over."""
        snapshot, reply = self._in_progress, prefetcher.saved
        if snapshot is None:
            return
        replied = reply is not None and reply.snapshot_id == snapshot.number
        if not replied and now < snapshot.deadline:
            return
        self._in_progress = None
        checkpoint = snapshot.checkpoint
        server.reply_to_snapshot(
            snapshot.requesters,
            {
                "checkpoint": checkpoint.name if checkpoint is not None else None,
                "learner_step": snapshot.learner_step,
                "replay": reply.saved if reply is not None and replied else None,
            },
        )
