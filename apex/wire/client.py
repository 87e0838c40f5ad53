"""Client side of an endpoint: a DEALER socket that says HELLO after every reconnect."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping

import zmq  # noqa: TID251
from zmq.utils.monitor import recv_monitor_message  # noqa: TID251

from apex.data.array_bytes import Frame
from apex.data.schema import Array
from apex.errors import DecodeError, PeerTimeoutError, RefusedError
from apex.wire.codec import Received, decode, encode
from apex.wire.endpoints import Endpoint
from apex.wire.messages import Error, Hello, Message, Welcome
from apex.wire.sockets import HANDSHAKE_FAILURES, connected_dealer

log = logging.getLogger("apex.wire")

HELLO_RETRY_S = 2.0
FATAL_CODES = frozenset(
    {
        "wrong_run",
        "wrong_schema",
        "protocol_version",
        "not_authorized",
        "not_permitted",
        "superseded",
        "future_epoch",
    }
)
"""Errors that sending again cannot resolve."""


class Client:
    """A connection to one endpoint that survives restarts of the server.

    The client is `ready` from a `Welcome` until the connection is lost. `receive` returns each
    `Welcome` like any other message: the caller must then resend its unanswered messages.

    Args:
        endpoint: where to connect.
        hello: sent at the start of every connection.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        hello: Hello,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = endpoint.name
        self.hello = hello
        self.ready = False
        self._connected = False
        self._handshake_failed = False
        self._hello_sent = float("-inf")
        self._clock = clock
        self._level = logging.DEBUG if hello.role == "operator" else logging.INFO
        self._socket, self._monitor = connected_dealer(endpoint, hello.role)
        log.log(self._level, "%s: connecting to %s", self.name, endpoint.address)

    def pollables(self) -> list[zmq.Socket[bytes] | int]:
        """See `apex.wire.sockets.Pollable`."""
        return [self._socket, self._monitor]

    def receive(self) -> list[Received]:
        """Return all messages that have arrived; never blocks.

        Raises:
            RefusedError: the server refuses this client.
        """
        self._watch_connection()
        received: list[Received] = []
        while _readable(self._socket):
            try:
                frames = self._next_frames()
            except zmq.Again:  # the connection was lost, and its unread messages with it
                break
            try:
                item = decode(frames)
            except DecodeError as error:
                if error.code in FATAL_CODES:
                    raise RefusedError(f"{self.name}: {error}", error.code) from None
                log.warning("%s: dropped a message: %s", self.name, error)
                continue
            if isinstance(item.message, Error):
                self._on_error(item.message)
            if isinstance(item.message, Welcome):
                self.ready = True
                log.log(self._level, "%s: connected", self.name)
            received.append(item)
        return received

    def _next_frames(self) -> list[Frame]:
        """Return the frames of one message: header, then buffers as views. Raises `zmq.Again`."""
        frames: list[Frame] = [self._socket.recv(zmq.NOBLOCK)]
        while self._socket.getsockopt(zmq.RCVMORE):
            frames.append(self._socket.recv(copy=False).buffer)
        return frames

    def _watch_connection(self) -> None:
        while _readable(self._monitor):
            event = recv_monitor_message(self._monitor)["event"]
            if event & HANDSHAKE_FAILURES:
                self._on_handshake_failure(event)
                continue
            self._connected = event == zmq.EVENT_HANDSHAKE_SUCCEEDED
            if self.ready and not self._connected:
                log.info("%s: connection lost, reconnecting", self.name)
            self.ready = False
            self._hello_sent = float("-inf")
        if self._connected and not self.ready and self._clock() - self._hello_sent > HELLO_RETRY_S:
            self._hello_sent = self._clock()
            self._transmit(self.hello, None)

    def _on_handshake_failure(self, event: int) -> None:
        """Raise when the server has refused the key or user; libzmq retries other failures."""
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            raise RefusedError(
                f"{self.name} refused the connection: this process runs as another user than the "
                "server, or its key is not in the server's authorized/ (see `apex keys new`)",
                "not_authorized",
            )
        if not self._handshake_failed:
            self._handshake_failed = True
            log.warning(
                "%s: the handshake failed, retrying. If the endpoint uses keys, check that "
                "server.public belongs to the server's server.secret",
                self.name,
            )

    def _on_error(self, error: Error) -> None:
        if error.code in FATAL_CODES:
            raise RefusedError(f"{self.name}: {error.detail}", error.code)
        if error.code == "hello_required":
            self.ready = False
            self._hello_sent = float("-inf")
        else:
            log.warning("%s: %s: %s", self.name, error.code, error.detail)

    def send(self, message: Message, arrays: Mapping[str, Array] | None = None) -> bool:
        """Send a message; never blocks.

        Returns:
            False when the client is not `ready` or the server does not read its messages.
        """
        return self.ready and self._transmit(message, arrays)

    def _transmit(self, message: Message, arrays: Mapping[str, Array] | None) -> bool:
        try:
            self._socket.send_multipart(encode(message, arrays), zmq.NOBLOCK, copy=not arrays)
        except zmq.Again:
            return False
        return True

    def request(self, message: Message, timeout_s: float) -> Received:
        """Send one message and wait for its reply; only for clients with one request at a time.

        Raises:
            PeerTimeoutError: no reply within `timeout_s` seconds.
            RefusedError: the reply is an error.
        """
        deadline = self._clock() + timeout_s
        sent = False
        while (left := deadline - self._clock()) > 0:
            poller = zmq.Poller()
            for pollable in self.pollables():
                poller.register(pollable, zmq.POLLIN)
            poller.poll(int(min(left, 0.2) * 1000))
            for item in self.receive():
                if isinstance(item.message, Error):
                    raise RefusedError(f"{self.name}: {item.message.detail}", item.message.code)
                if not isinstance(item.message, Welcome):
                    return item
            if self.ready and not sent:
                sent = self.send(message)
        raise PeerTimeoutError(f"{self.name}: no answer within {timeout_s:g} s")

    def close(self) -> None:
        """Close the connection after sending queued messages, which takes at most one second."""
        if self._socket.closed:
            return
        self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close()


def _readable(socket: zmq.Socket[bytes]) -> bool:
    """Whether a complete message has arrived; cheaper than a poller, since actors call it often."""
    events = socket.get(zmq.EVENTS)
    assert isinstance(events, int)
    return bool(events & zmq.POLLIN)
