"""Publications of parameters, with version numbers that never decrease. Imports no torch."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from pathlib import Path

from apex.host.files import replace_file

log = logging.getLogger("apex.learner")

VERSIONS_PER_BLOCK = 1000
UNKNOWN_VERSIONS = 10**9
"""More versions than are ever assigned between two checkpoints."""


@dataclass(frozen=True)
class Publication:
    """One version of the parameters, already encoded.

    Args:
        param_version: increases with each publication, also across the learner's restarts.
        learner_step: number of updates of these parameters.
        env_steps: environment steps of all actors at the publication.
        train_s: seconds of training at the publication.
        data: the parameters as safetensors bytes.
        crc32: checksum of `data`.
    """

    param_version: int
    learner_step: int
    env_steps: int
    train_s: float
    data: bytes | memoryview
    crc32: int


class VersionCounter:
    """Assigns versions that increase across restarts, reserving them on disk in blocks.

    Args:
        path: file with the first version that has not been reserved.
        known: a version of an earlier start, from a checkpoint; -1: none.
    """

    def __init__(self, path: Path, known: int = -1) -> None:
        self._path = path
        try:
            self._next = int(path.read_text()) if path.exists() else 0
        except (ValueError, OSError) as error:
            log.error("cannot read %s: %s", path, error)
            self._next = 0
        if self._next <= known:
            self._next = known + UNKNOWN_VERSIONS
            log.error(
                "%s is lost or damaged: parameter versions continue from %d", path, self._next
            )
        self._reserved = self._next

    def take(self) -> int:
        """Return the next version. Raises `OSError` when none can be reserved."""
        if self._next >= self._reserved:
            reserved = self._reserved + VERSIONS_PER_BLOCK
            replace_file(self._path, str(reserved).encode())
            self._reserved = reserved
        version, self._next = self._next, self._next + 1
        return version


class PublicationBoard:
    """Passes the newest publication from the training thread to the serving thread."""

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
