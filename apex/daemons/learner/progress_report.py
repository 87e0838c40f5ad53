"""The learner's progress: its status and its metrics, from the trainer and the prefetcher."""

from __future__ import annotations

import os

import torch

from apex.daemons.learner.prefetcher import Prefetcher
from apex.daemons.learner.trainer import Trainer
from apex.daemons.metrics import Rate
from apex.daemons.status.reports import LearnerReport

REPORTED = ("updates_per_s", "samples_per_s", "data_wait_fraction", "param_version", "train_s",
            "ready_batches")  # fmt: skip
"""Fields of the status that are metrics too."""


class ProgressReport:
    """Status and metrics of the learner.

    Args:
        trainer: what is trained.
        prefetcher: what provides the batches.
        device: where the trainer's network is.
        batch_size: items of a batch.
    """

    def __init__(
        self, trainer: Trainer, prefetcher: Prefetcher, device: torch.device, batch_size: int
    ) -> None:
        self._trainer, self._prefetcher = trainer, prefetcher
        self._device, self._batch_size = device, batch_size
        self.state = "waiting"
        self.updates, self.waited_s = Rate(), Rate()

    def status(self) -> LearnerReport:
        """The learner's status."""
        trainer, metrics = self._trainer, self._trainer.figures
        newest, rate = trainer.board.newest(), metrics.get("learning_rate")
        updates_per_s = self.updates.per_second()
        return LearnerReport(
            state=self.state,
            pid=os.getpid(),
            device=str(self._device),
            learner_step=trainer.learner_step,
            updates_per_s=round(updates_per_s, 2),
            samples_per_s=round(updates_per_s * self._batch_size, 1),
            data_wait_fraction=round(min(1.0, self.waited_s.per_second()), 4),
            param_version=newest.param_version if newest else -1,
            train_s=round(trainer.train_s, 1),
            ready_batches=self._prefetcher.ready,
            skipped_updates=int(metrics.get("skipped_updates", 0)),
            learning_rate=rate,
            corrupt_items=self._prefetcher.corrupt_items,
            rollbacks=trainer.rollbacks,
            alarm=trainer.alarm,
            outcome=trainer.outcome,
        )

    def metrics(self) -> dict[str, float]:
        """The last update's metrics and the figures of training, by column."""
        trainer = self._trainer
        figures = trainer.read_metrics()
        status = self.status()
        return {
            **figures,
            **{name: getattr(status, name) for name in REPORTED},
            "item_staleness": trainer.item_staleness,
            "table_items": self._prefetcher.table_items,
            "dropped_batches": self._prefetcher.dropped_batches,
            "corrupt_items": self._prefetcher.corrupt_items,
            "rollbacks": trainer.rollbacks,
        }
