"""Server side of an endpoint: a ROUTER socket that accepts only known peers and valid messages."""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import zmq  # noqa: TID251

from apex.data.schema import Array, Arrays
from apex.errors import DecodeError, RefusedError
from apex.wire.codec import decode, encode
from apex.wire.endpoints import Endpoint
from apex.wire.messages import AnyMessage, Error, Hello, Message, Role, Welcome
from apex.wire.sockets import bound_router

log = logging.getLogger("apex.wire")

PEER_SILENCE_S = 120.0
"""Seconds after which a silent peer is forgotten; it must then say HELLO again."""
SWEEP_S = 1.0
MAX_MESSAGES_PER_CALL = 64
EPOCH_LEAD_NS = 3600 * 10**9
"""Nanoseconds by which the clock of another host may be ahead."""


@dataclass
class Peer:
    """A connection whose HELLO was accepted."""

    identity: bytes
    hello: Hello
    last_seen: float
    user: str
    """User id that the gate gave the connection."""


@dataclass(frozen=True)
class Request:
    """A message from a known peer whose role may send it."""

    peer: Peer
    message: AnyMessage
    arrays: Arrays


Permissions = Mapping[Role, tuple[type[Message], ...]]


@dataclass
class Server:
    """Binds one endpoint and checks every message of its peers.

    Args:
        endpoint: the address to bind, and its keys.
        run_id: a HELLO of another run is refused.
        schema_hash: a HELLO with another schema is refused; operators may leave theirs empty.
        permissions: the messages that each role may send here.
        on_hello: called with a new peer; returns its `Welcome`, or raises `RefusedError`.
        clock: monotonic time in seconds.
    """

    endpoint: Endpoint
    run_id: str
    schema_hash: str
    permissions: Permissions
    on_hello: Callable[[Peer], Welcome]
    clock: Callable[[], float] = time.monotonic
    name: str = field(init=False)
    peers: dict[bytes, Peer] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)
    """Count of refused messages by error code, and of dropped replies as `reply_dropped`."""

    def __post_init__(self) -> None:
        self.instance = time.time_ns()
        self.name = self.endpoint.name
        self._socket, self._policy, self._lock = bound_router(self.endpoint)
        self._last_sweep = self.clock()

    def pollables(self) -> list[zmq.Socket[bytes] | int]:
        """See `apex.wire.sockets.Pollable`."""
        return [self._socket]

    def receive(self) -> Iterator[Request]:
        """Yield the requests that have arrived, at most `MAX_MESSAGES_PER_CALL`; never blocks."""
        self._sweep()
        for _ in range(MAX_MESSAGES_PER_CALL):
            try:
                sender = self._socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            request = self._admit(sender, self._socket.recv_multipart(zmq.NOBLOCK))
            if request is not None:
                yield request

    def _admit(self, sender: zmq.Frame, frames: list[bytes]) -> Request | None:
        identity = sender.bytes
        try:
            received = decode(frames)
            message = received.message
            if isinstance(message, Hello):
                self._greet(Peer(identity, message, self.clock(), str(sender.get("User-Id"))))
                return None
            peer = self.peers.get(identity)
            if peer is None or peer.user != str(sender.get("User-Id")):
                raise DecodeError("say HELLO first", code="hello_required")
            if not isinstance(message, self.permissions[peer.hello.role]):
                raise DecodeError(
                    f"the role '{peer.hello.role}' may not send {type(message).__name__} here",
                    code="not_permitted",
                )
        except DecodeError as error:
            self.refuse(identity, error.code, str(error))
            return None
        peer.last_seen = self.clock()
        return Request(peer, message, received.arrays)

    def _greet(self, peer: Peer) -> None:
        identity, hello = peer.identity, peer.hello
        refusal = self._policy.refusal(peer.user, hello.role)
        if refusal is not None:
            return self.refuse(identity, "not_authorized", refusal)
        if hello.run_id != self.run_id:
            return self.refuse(
                identity,
                "wrong_run",
                f"expected run {self.run_id}, got {hello.run_id}: use the files of one run",
            )
        if hello.role not in self.permissions:
            return self.refuse(
                identity, "not_permitted", f"{self.name} does not accept the role '{hello.role}'"
            )
        if hello.role != "operator" and hello.schema_hash != self.schema_hash:
            return self.refuse(
                identity,
                "wrong_schema",
                f"{self.name} expected schema {self.schema_hash}, got {hello.schema_hash} from "
                f"{hello.name}: start it with this run's configuration",
            )
        if self.endpoint.keys and hello.epoch > time.time_ns() + EPOCH_LEAD_NS:
            return self.refuse(
                identity,
                "future_epoch",  # accepting it would refuse all later starts of that name
                f"the epoch of {hello.name} is over an hour ahead: synchronise both hosts' clocks",
            )
        try:
            welcome = self.on_hello(peer)
        except RefusedError as error:
            return self.refuse(identity, error.code, str(error))
        self._forget_older_connections(hello)
        self.peers[identity] = peer
        self.send(identity, welcome)
        if hello.role != "operator":
            log.info("%s: %s (pid %d) connected", self.name, hello.name, hello.pid)

    def _forget_older_connections(self, hello: Hello) -> None:
        for identity, peer in list(self.peers.items()):
            if peer.hello.name == hello.name and peer.hello.role == hello.role != "operator":
                del self.peers[identity]

    def refuse(self, identity: bytes, code: str, detail: str) -> None:
        """Count a refusal and send the peer an `Error`."""
        self.refused[code] += 1
        if code != "hello_required" and self.refused[code] in (1, 10, 100, 1000):
            log.warning(
                "%s: refused a message (%s, %d so far): %s",
                self.name,
                code,
                self.refused[code],
                detail,
            )
        self.send(identity, Error(code=code, detail=detail))

    def send(
        self, identity: bytes, message: Message, arrays: Mapping[str, Array] | None = None
    ) -> bool:
        """Send a message; never blocks.

        Returns:
            False when the peer is gone or does not read, which is counted in `refused`.
        """
        try:
            self._socket.send_multipart(
                [identity, *encode(message, arrays)], zmq.NOBLOCK, copy=not arrays
            )
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self.refused["reply_dropped"] += 1
            return False
        return True

    def _sweep(self) -> None:
        now = self.clock()
        if now - self._last_sweep < SWEEP_S:
            return
        self._last_sweep = now
        for identity, peer in list(self.peers.items()):
            refusal = self._policy.refusal(peer.user, peer.hello.role)
            if refusal is not None or now - peer.last_seen > PEER_SILENCE_S:
                del self.peers[identity]
            if refusal is not None:
                self.refuse(identity, "not_authorized", f"{peer.hello.name}: {refusal}")

    def close(self) -> None:
        """Unbind the endpoint after sending queued replies."""
        self._socket.close()
        if self._lock is not None:
            path = self.endpoint.address[len("ipc://") :]
            if os.path.exists(path):
                os.unlink(path)
            self._lock.release()
