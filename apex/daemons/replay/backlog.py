"""Queue of complete chunks that are sent to replay as its credits allow."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable

from apex.daemons.replay.client import InsertClient
from apex.data.chunks import Chunk

DRAIN_S = 3.0


class Backlog:
    """Chunks that wait for credit; the owner stops acting while the queue is long.

    Args:
        client: the connection to replay.
    """

    def __init__(self, client: InsertClient) -> None:
        self._client = client
        self._chunks: deque[Chunk] = deque()

    def __len__(self) -> int:
        return len(self._chunks)

    def put(self, chunks: Iterable[Chunk]) -> None:
        """Add chunks."""
        self._chunks.extend(chunks)

    def send(self) -> None:
        """Process acknowledgements and insert chunks while there is credit; never blocks."""
        self._client.poll()
        while self._chunks and self._client.has_credit:
            self._client.insert(self._chunks.popleft())

    @property
    def drained(self) -> bool:
        """Whether all chunks are acknowledged, or cannot be sent without a connection."""
        unfinished = self._chunks or self._client.unacknowledged
        return not unfinished or not self._client.client.ready

    def drain(self, turn: Callable[[], object]) -> None:
        """Call `turn`, which sends and waits, until the queue is drained or `DRAIN_S` is over."""
        deadline = time.monotonic() + DRAIN_S
        while not self.drained and time.monotonic() < deadline:
            turn()
