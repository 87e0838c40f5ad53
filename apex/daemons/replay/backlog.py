"""Chunks that are complete and on their way to replay, at the pace that its credits allow."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from apex.daemons.replay.client import InsertClient
from apex.data.chunks import Chunk


class Backlog:
    """Chunks that wait for credit; whoever fills it stops to act while it is long.

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
        """Take acknowledgements and insert what credit there is for; never waits."""
        self._client.poll()
        while self._chunks and self._client.has_credit:
            self._client.insert(self._chunks.popleft())

    @property
    def drained(self) -> bool:
        """Whether nothing is left that could still be handed over."""
        left = self._chunks or self._client.unacknowledged
        return not left or not self._client.client.ready
