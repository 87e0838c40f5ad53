"""Who may connect: each handshake is judged by one thread of this process (ZAP, ZeroMQ RFC 27).

Every endpoint has a domain of its own and is bound with ZAP_ENFORCE_DOMAIN, so that without this
thread nobody gets in. On ipc the boundary is the user id that the kernel tells; on tcp it is a
CURVE key; on loopback without keys (`insecure_loopback`) there is none.
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
"""User of connections that have no key."""


class Policy(Protocol):
    """Who may connect to one endpoint."""

    def admit(self, address: str, mechanism: str, credentials: list[bytes]) -> str | None:
        """The user that connects; None: nobody who may."""
        ...

    def refusal(self, user: str, role: Role) -> str | None:
        """Why a connected user may not speak in this role now; None if it may."""
        ...


class SameUser:
    """On a unix socket: processes of this user, and root's."""

    def __init__(self, uid: int) -> None:
        self._uids = {uid, 0}

    def admit(self, address: str, mechanism: str, credentials: list[bytes]) -> str | None:
        """libzmq appends `:uid:gid:pid` of the peer, by SO_PEERCRED, to the address."""
        parts = address.rsplit(":", 3)
        known = mechanism == "NULL" and len(parts) == 4 and parts[1].isdigit()
        return ANYONE if known and int(parts[1]) in self._uids else None

    def refusal(self, user: str, role: Role) -> str | None:
        """Any role: the user id is the boundary."""
        return None


class Anyone:
    """On loopback, where the endpoints file says so."""

    def admit(self, address: str, mechanism: str, credentials: list[bytes]) -> str | None:
        """Everyone who reaches the port."""
        return ANYONE if mechanism == "NULL" else None

    def refusal(self, user: str, role: Role) -> str | None:
        """Any role."""
        return None


class KeyHolders:
    """On tcp: holders of a key in `authorized/`, each in its key's role.

    Args:
        folder: of the keys; read again at most once a second.
        clock: seconds, monotonic.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._lock = threading.Lock()
        self._read_at = float("-inf")
        self._keys: dict[str, Key] = {}

    def admit(self, address: str, mechanism: str, credentials: list[bytes]) -> str | None:
        """The holder of an authorized key; libzmq has seen that the secret half is there."""
        if mechanism != "CURVE" or len(credentials) != 1:
            return None
        public = z85.encode(credentials[0]).decode()
        with self._lock:
            self._read()
            return public if public in self._keys else None

    def refusal(self, user: str, role: Role) -> str | None:
        """A revoked key, or one of another role."""
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
            log.error("%s: %s; who was let in stays so", self._folder, error)


class Gate:
    """The thread that answers libzmq's question at each handshake.

    Args:
        context: whose sockets it watches over.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self._policies: dict[str, Policy] = {}
        self.refused: Counter[str] = Counter()
        """Handshakes, by the endpoint's name."""
        self._socket = context.socket(zmq.REP)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(ADDRESS)
        self._stop, self._stopped = os.eventfd(0, os.EFD_CLOEXEC), False
        self._thread = threading.Thread(target=self._serve, name=THREAD, daemon=True)
        self._thread.start()

    def guard(self, socket: zmq.Socket[bytes], name: str, policy: Policy) -> None:
        """Let only those in whom `policy` admits; before the socket is bound."""
        domain = f"{name}/{len(self._policies)}"
        self._policies[domain] = policy
        socket.setsockopt(zmq.ZAP_DOMAIN, domain.encode())
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def close(self) -> None:
        """End the thread: no handshake succeeds any more."""
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
            log.warning("%s: refused a stranger (%dx), last %r", name, self.refused[name], address)
