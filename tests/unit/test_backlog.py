"""The actor's backlog of chunks: sent in order as credits allow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from apex.daemons.replay.backlog import Backlog
from tests.support.builders import vector_chunk


class Connection:
    """An `InsertClient` with a number of credits; nothing is acknowledged."""

    def __init__(self, credits: int) -> None:
        self.credits = credits
        self.sent: list[int] = []
        self.unacknowledged = 0
        self.client = SimpleNamespace(ready=True)

    @property
    def has_credit(self) -> bool:
        return self.credits > 0

    def poll(self) -> None:
        """Nothing arrives."""

    def insert(self, chunk: Any) -> None:
        self.credits -= 1
        self.unacknowledged += 1
        self.sent.append(int(chunk.columns["action"][0]))


def backlog_of(connection: Any) -> Backlog:
    return Backlog(connection)


def test_chunks_are_sent_in_order_while_there_is_credit() -> None:
    connection = Connection(credits=2)
    backlog = backlog_of(connection)
    backlog.put(vector_chunk([number]) for number in (5, 6, 7))
    backlog.send()
    assert connection.sent == [5, 6] and len(backlog) == 1
    connection.credits = 1
    backlog.send()
    assert connection.sent == [5, 6, 7] and len(backlog) == 0


def test_backlog_is_drained_when_all_is_acknowledged_or_the_server_is_gone() -> None:
    connection = Connection(credits=1)
    backlog = backlog_of(connection)
    assert backlog.drained
    backlog.put([vector_chunk([5])])
    assert not backlog.drained
    backlog.send()
    assert not backlog.drained, "it is not acknowledged"
    connection.client.ready = False
    assert backlog.drained
    connection.client.ready, connection.unacknowledged = True, 0
    assert backlog.drained
