"""Send requests to running daemons in the operator role."""

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
    """Connect to an endpoint in the operator role."""
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
    """Send a message to a daemon and return its reply.

    Raises:
        ApexError: the daemon does not reply within `timeout_s` seconds, or refuses.
    """
    client = operator_client(run, endpoint)
    try:
        return client.request(message, timeout_s).message
    finally:
        client.close()


def ask(run: RunDirectory, endpoint: str, report: type[Answer]) -> Answer | None:
    """Request a daemon's status.

    Args:
        run: the run.
        endpoint: name of the daemon's endpoint, such as `replay.sample`.
        report: type of its reply.

    Returns:
        The status, or None when the daemon does not reply in time.

    Raises:
        DecodeError: the reply does not have the type `report`.
        RefusedError: the daemon refuses, for example because its version differs.
    """
    from apex.wire.messages import Status, StatusReply

    try:
        message = request(run, endpoint, Status(), ASK_TIMEOUT_S)
    except RefusedError:
        raise
    except ApexError:
        return None
    return from_wire(message.status, report) if isinstance(message, StatusReply) else None
