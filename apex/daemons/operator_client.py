"""Ask a running daemon, as an operator."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from apex.daemons.status.reports import Answer, from_wire
from apex.errors import ApexError, RefusedError
from apex.runs.directory import RunDirectory

if TYPE_CHECKING:
    from apex.wire.client import Client
    from apex.wire.messages import AnyMessage, Message


ASK_TIMEOUT_S = 2.0


def operator_client(run: RunDirectory, endpoint: str) -> Client:
    """A connection of this process as an operator."""
    from apex.wire.client import Client
    from apex.wire.messages import Hello

    hello = Hello(
        role="operator",
        name=f"operator_{os.getpid()}",
        epoch=time.time_ns(),
        run_id=run.facts().run_id,
        schema_hash="",
        pid=os.getpid(),
    )
    return Client(run.endpoints().of(endpoint), hello)


def request(run: RunDirectory, endpoint: str, message: Message, timeout_s: float) -> AnyMessage:
    """What a daemon answers to an operator.

    Raises:
        ApexError: it does not answer in time, or refuses.
    """
    client = operator_client(run, endpoint)
    try:
        return client.request(message, timeout_s).message
    finally:
        client.close()


def ask(run: RunDirectory, endpoint: str, report: type[Answer]) -> Answer | None:
    """A daemon's answer to STATUS, or None when it does not answer.

    Raises:
        DecodeError: the answer is not such a report.
        RefusedError: the daemon refuses to answer, such as one of another version.
    """
    from apex.wire.messages import Status, StatusReply

    try:
        message = request(run, endpoint, Status(), ASK_TIMEOUT_S)
    except RefusedError:
        raise
    except ApexError:
        return None
    return from_wire(message.status, report) if isinstance(message, StatusReply) else None
