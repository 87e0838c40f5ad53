"""Authentication of connections: one thread per process answers ZAP requests (ZeroMQ RFC 27).

Each endpoint has its own ZAP domain and is bound with ZAP_ENFORCE_DOMAIN, so that without this
thread every connection is refused. On ipc the kernel's user id of the peer decides, on tcp its
CURVE key; on loopback without keys (`insecure_loopback`) every connection is accepted.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import zmq  # noqa: TID251
from zmq.utils import z85  # noqa: TID251

from apex.wire.curve_keys import Key, authorized_keys
from apex.wire.messages import Role

log = logging.getLogger("apex.wire")

ADDRESS = "inproc://zeromq.zap.01"
THREAD = "gate"
RELOAD_S = 1.0
ANYONE = "local"
"""ZAP user id of connections without a key."""


class Policy(Protocol):
    """Decides who may connect to one endpoint."""

    def admit(self, address: str, mechanism: str, credentials: list[bytes]) -> str | None:
        """Return the user id of a peer that may connect, or None when it may not."""
        ...

    def refusal(self, user: str, role: Role) -> str | None:
        """Return why a connected user may not act in this role now, or None when it may."""
        ...


class SameUser:
    """Policy of unix sockets: processes of this user and of root may connect."""

    def __init__(self, uid: int) -> None:
        self._uids = {uid, 0}

    def admit(self, address: str, mechanism: str, credentials: list[bytes]) -> str | None:
        """Admit by user id; libzmq appends the peer's `:uid:gid:pid` (SO_PEERCRED) to `address`."""
        parts = address.rsplit(":", 3)
        known = mechanism == "NULL" and len(parts) == 4 and parts[1].isdigit()
        return ANYONE if known and int(parts[1]) in self._uids else None

    def refusal(self, user: str, role: Role) -> str | None:
        """Allow every role: the user id was checked at the handshake."""
        return None


class Anyone:
    """Policy of loopback addresses with `insecure_loopback`: every process may connect."""

    def admit(self, address: str, mechanism: str, credentials: list[bytes]) -> str | None:
        """Admit every peer."""
        return ANYONE if mechanism == "NULL" else None

    def refusal(self, user: str, role: Role) -> str | None:
        """Allow every role."""
        return None


class KeyHolders:
    """Policy of tcp with keys: holders of a key in `authorized/` may connect, in the key's role.

    Args:
        folder: the key folder; it is read again at most once a second.
        clock: monotonic time in seconds.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._keys: dict[str, Key] = {}

    def admit(self, address: str, mechanism: str, credentials: list[bytes]) -> str | None:
        """Admit the holder of an authorized key; libzmq has verified the secret key."""
        if mechanism != "CURVE" or len(credentials) != 1:
            return None
        public = z85.encode(credentials[0]).decode()
        with self._lock:
            self._read()
            return public if public in self._keys else None

    def refusal(self, user: str, role: Role) -> str | None:
        """Refuse a revoked key and a key for another role."""
        with self._lock:
            self._read()
            key = self._keys.get(user)
        if key is None:
            return "this key is no longer authorized"
        if key.role != role:
            return f"the key '{key.name}' is for the role '{key.role}', not '{role}'"
        return None

    def _read(self) -> None:
        now = self._clock()
        if now - self._read_at < RELOAD_S:
            return
        self._read_at = now
        try:
            self._keys = authorized_keys(self._folder, self._keys)
        except FileNotFoundError:
            self._keys = {}
        except OSError as error:
            log.error(
                "%s: cannot be read (%s); the keys read before stay valid", self._folder, error
            )


class Gate:
    """A thread that answers libzmq's ZAP request for each handshake.

    Args:
        context: the context whose sockets it protects.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._policies: dict[str, Policy] = {}
        self.refused: Counter[str] = Counter()
        """Refused handshakes by endpoint name."""
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ADDRESS)
        self._stop, self._stopped = os.eventfd(0, os.EFD_CLOEXEC), False
        self._thread = threading.Thread(target=self._serve, name=THREAD, daemon=True)
        self._thread.start()

    def guard(self, socket: zmq.Socket[bytes], name: str, policy: Policy) -> None:
        """Admit only the peers that `policy` admits; call it before binding the socket."""
        domain = f"{name}/{len(self._policies)}"
        self._policies[domain] = policy
        socket.setsockopt(zmq.ZAP_DOMAIN, domain.encode())
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def close(self) -> None:
        """Stop the thread; every later handshake fails."""
        if not self._stopped:
            self._stopped = True
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            os.close(self._stop)

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._stop, zmq.POLLIN)
        while self._stop not in dict(poller.poll()):
            self._answer(self._socket.recv_multipart())
        self._socket.close()

    def _answer(self, frames: list[bytes]) -> None:
        version, request, domain, address, _, mechanism, *credentials = frames
        policy = self._policies.get(domain.decode())
        user = None
        if policy is not None:
            user = policy.admit(address.decode(errors="replace"), mechanism.decode(), credentials)
        if user is None:
            self._refuse(domain.decode().partition("/")[0], address.decode(errors="replace"))
            status = [b"400", b"not authorized", b""]
        else:
            status = [b"200", b"OK", user.encode()]
        self._socket.send_multipart([version, request, *status, b""])

    def _refuse(self, name: str, address: str) -> None:
        self.refused[name] += 1
        if self.refused[name] in (1, 10, 100, 1000):
            log.warning(
                "%s: refused an unauthorized connection (%d so far), last from %r",
                name,
                self.refused[name],
                address,
            )
