"""Publications of parameters: what travels with them, and versions that never go back. No torch."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from apex.host.files import replace_file

log = logging.getLogger("apex.learner")

VERSIONS_A_BLOCK = 1000
UNKNOWN_VERSIONS = 10**9
"""More than are ever given between two checkpoints."""


@dataclass(frozen=True)
class Publication:
    """One version of the parameters, encoded once.

    Args:
        param_version: rises with each publication, also across the learner's restarts.
        learner_step: updates that made these parameters.
        env_steps: of all actors when they were published.
        train_s: seconds of training when they were published.
        data: safetensors bytes.
        crc32: of the data.
    """

    param_version: int
    learner_step: int
    env_steps: int
    train_s: float
    data: bytes | memoryview
    crc32: int


class VersionCounter:
    """Gives versions that rise across restarts: they are reserved on disk a block at a time.

    Args:
        path: holds the first version that has not been reserved.
        known: a version that was given before, of a checkpoint; -1: none.
    """

    def __init__(self, path: Path, known: int = -1) -> None:
        self._path = path
        try:
            self._next = int(path.read_text()) if path.exists() else 0
        except (ValueError, OSError) as error:
            log.error("%s cannot be read: %s", path, error)
            self._next = 0
        if self._next <= known:
            self._next = known + UNKNOWN_VERSIONS
            log.error("%s is lost or damaged: versions go on from %d", path, self._next)
        self._reserved = self._next

    def take(self) -> int:
        """The next version."""
        if self._next >= self._reserved:
            reserved = self._reserved + VERSIONS_A_BLOCK
            replace_file(self._path, str(reserved).encode())
            self._reserved = reserved
        version, self._next = self._next, self._next + 1
        return version


class PublicationBoard:
    """Where the training thread puts the newest publication and the serving thread takes it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: Publication | None = None

    def put(self, publication: Publication) -> None:
        """Replace the newest publication."""
        with self._lock:
            self._newest = publication

    def newest(self) -> Publication | None:
        """The newest publication, or None before the first."""
        with self._lock:
            return self._newest
