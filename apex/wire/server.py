"""The serving side of an endpoint: a ROUTER that knows its peers and refuses everything else."""

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
"""Seconds after which a silent peer is forgotten; it is asked for a HELLO when it comes back."""
SWEEP_S = 1.0
MAX_MESSAGES_A_TURN = 64
EPOCH_LEAD_NS = 3600 * 10**9
"""How far the clock of another host may be ahead."""


@dataclass
class Peer:
    """One greeted connection."""

    identity: bytes
    hello: Hello
    last_seen: float
    user: str
    """As the gate has let it in."""


@dataclass(frozen=True)
class Request:
    """A message from a greeted peer whose role may send it."""

    peer: Peer
    message: AnyMessage
    arrays: Arrays


Permissions = Mapping[Role, tuple[type[Message], ...]]


@dataclass
class Server:
    """Binds one endpoint and keeps the conversation with its peers.

    Args:
        endpoint: where to bind, and what guards it.
        run_id: HELLOs of another run are refused.
        schema_hash: HELLOs with another schema are refused; operators may leave it empty.
        permissions: which messages each role may send here.
        on_hello: called with a new peer; gives the `Welcome`, or raises `RefusedError`.
        clock: seconds, monotonic.
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
    """Messages that were refused, and replies that were dropped, by reason."""

    def __post_init__(self) -> None:
        self.instance = time.time_ns()
        self.name = self.endpoint.name
        self._socket, self._policy, self._lock = bound_router(self.endpoint)
        self._last_sweep = self.clock()

    def pollables(self) -> list[zmq.Socket[bytes] | int]:
        """See `apex.wire.sockets.Pollable`."""
        return [self._socket]

    def receive(self) -> Iterator[Request]:
        """The requests that have arrived, at most `MAX_MESSAGES_A_TURN`; never waits."""
        self._sweep()
        for _ in range(MAX_MESSAGES_A_TURN):
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
                identity, "wrong_run", f"this is run {self.run_id}, not {hello.run_id}"
            )
        if hello.role not in self.permissions:
            return self.refuse(identity, "not_permitted", f"no role '{hello.role}' at {self.name}")
        if hello.role != "operator" and hello.schema_hash != self.schema_hash:
            return self.refuse(
                identity,
                "wrong_schema",
                f"{self.name} has schema {self.schema_hash}, {hello.name} came with "
                f"{hello.schema_hash}: was it started with another configuration?",
            )
        if self.endpoint.keys and hello.epoch > time.time_ns() + EPOCH_LEAD_NS:
            return self.refuse(
                identity,
                "future_epoch",  # which would keep out all later starts of that name
                f"{hello.name} says that it was started an hour from now or later: set the clocks",
            )
        try:
            welcome = self.on_hello(peer)
        except RefusedError as error:
            return self.refuse(identity, error.code, str(error))
        self._forget_older_connections(hello)
        self.peers[identity] = peer
        self.send(identity, welcome)
        if hello.role != "operator":
            log.info("%s: %s (pid %d) is here", self.name, hello.name, hello.pid)

    def _forget_older_connections(self, hello: Hello) -> None:
        for identity, peer in list(self.peers.items()):
            if peer.hello.name == hello.name and peer.hello.role == hello.role != "operator":
                del self.peers[identity]

    def refuse(self, identity: bytes, code: str, detail: str) -> None:
        """Count a refusal and tell the peer."""
        self.refused[code] += 1
        if code != "hello_required" and self.refused[code] in (1, 10, 100, 1000):
            log.warning("%s: refused (%s, %dx): %s", self.name, code, self.refused[code], detail)
        self.send(identity, Error(code=code, detail=detail))

    def send(
        self, identity: bytes, message: Message, arrays: Mapping[str, Array] | None = None
    ) -> bool:
        """Send without ever waiting; False when the peer is gone or does not read (counted)."""
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
        """Unbind, after the replies that are under way."""
        self._socket.close()
        if self._lock is not None:
            path = self.endpoint.address[len("ipc://") :]
            if os.path.exists(path):
                os.unlink(path)
            self._lock.release()
