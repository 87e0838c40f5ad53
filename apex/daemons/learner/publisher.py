"""Publish the network's parameters, once they are proven finite and encoded."""

from __future__ import annotations

import logging
from collections import deque
from concurrent.futures import Future
from typing import NamedTuple

from torch import nn
from zlib_ng import zlib_ng

from apex.daemons.learner.host_copies import ParameterEncoder
from apex.daemons.learner.parameter_versions import (
    Publication,
    PublicationBoard,
    VersionCounter,
)
from apex.daemons.periodic import Every

log = logging.getLogger("apex.learner")


class TrainingTime(NamedTuple):
    """A moment of training."""

    learner_step: int
    env_steps: int
    train_s: float


class _Unproven(NamedTuple):
    """A publication whose parameters are not proven to be finite yet."""

    param_version: int
    time: TrainingTime
    data: Future[bytes]


class Publisher:
    """Publishes parameters.

    Parameters are proven to be finite by the next update: its loss is computed with them.

    Args:
        network: whose parameters are published.
        board: where they are published.
        versions: numbers them.
        period: learner steps between two publications; 0: by time, as `due` says.
        due: the period of publications by time.
        threaded: encode on a thread (`ParameterEncoder`).
    """

    def __init__(
        self,
        network: nn.Module,
        board: PublicationBoard,
        versions: VersionCounter,
        *,
        period: int,
        due: Every,
        threaded: bool,
    ) -> None:
        self._board, self._versions = board, versions
        self._period, self._due = period, due
        self._encoder = ParameterEncoder(network, threaded=threaded)
        self._unproven: deque[_Unproven] = deque()
        """Oldest first; at most one more than the updates whose results are unread."""

    def due(self, learner_step: int) -> bool:
        """Whether to publish after an update."""
        return learner_step % self._period == 0 if self._period else self._due.due()

    def publish(self, time: TrainingTime, *, proven: bool = True) -> None:
        """Publish the network's parameters, or keep them until `prove`.

        When no version can be reserved on disk, nothing is published and the log says so.
        """
        try:
            version = self._versions.take()
        except OSError as error:
            log.error("cannot publish parameters, training continues: %s", error)
            return
        publication = _Unproven(version, time, self._encoder.encode())
        if proven:
            self._put(publication)
        else:
            self._unproven.append(publication)

    def prove(self, learner_step: int) -> None:
        """Publish what was kept up to `learner_step`, which a finite loss has now proven."""
        while self._unproven and self._unproven[0].time.learner_step <= learner_step:
            self._put(self._unproven.popleft())

    def discard_unproven(self) -> None:
        """Forget what was kept, after the run diverged."""
        self._unproven.clear()

    def _put(self, publication: _Unproven) -> None:
        """Publish as soon as the parameters are encoded. One thread encodes them, in order."""

        def put(encoded: Future[bytes]) -> None:
            if (error := encoded.exception()) is not None:
                log.error("cannot encode parameters, training continues: %s", error)
                return
            data = encoded.result()
            crc32 = zlib_ng.crc32(data)
            self._board.put(Publication(publication.param_version, *publication.time, data, crc32))

        publication.data.add_done_callback(put)
