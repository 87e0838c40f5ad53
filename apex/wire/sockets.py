"""Sockets with every option that keeps a daemon alive, set in this one place."""

from __future__ import annotations

import logging
import os
import resource
import stat
from pathlib import Path
from typing import NamedTuple, Protocol

import zmq  # noqa: TID251

from apex.errors import EndpointError
from apex.host.files import FileLock
from apex.wire.authentication import Anyone, Gate, KeyHolders, Policy, SameUser
from apex.wire.curve_keys import client_keys, read_secret
from apex.wire.endpoints import Endpoint
from apex.wire.messages import Role

log = logging.getLogger("apex.wire")

MAX_FRAME_BYTES = 256 * 1024 * 1024
MAX_REQUEST_BYTES = {"learner.params": 2**20, "replay.sample": 2**21}
"""Of one frame that an endpoint takes; `replay.insert` takes `MAX_FRAME_BYTES`."""
SEND_HIGH_WATER = 64
"""Messages that may wait for one peer; our streams have at most a few dozen in flight."""
HANDSHAKE_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class _Process(NamedTuple):
    """What there is once in a process."""

    pid: int
    context: zmq.Context[zmq.Socket[bytes]]
    gate: Gate


_process: _Process | None = None


def _own() -> _Process:
    """Of this process, made after the fork: a child never uses its parent's."""
    global _process
    if _process is None or _process.pid != os.getpid():
        _raise_file_limit()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        context.set(zmq.MAX_SOCKETS, 4096)
        _process = _Process(os.getpid(), context, Gate(context))
    return _process


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """The context of this process."""
    return _own().context


def gate() -> Gate:
    """Judges who connects to the endpoints of this process."""
    return _own().gate


class Connections(NamedTuple):
    """What a process's connections take."""

    open_files: int
    max_open_files: int
    strangers: int
    """Handshakes that were refused."""


def connections() -> Connections:
    """Open files of this process, most of them connections, of how many; strangers kept out."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        opened = len(os.listdir("/proc/self/fd"))
    except OSError:  # not one more can be opened
        opened = most
    return Connections(opened, most, sum(gate().refused.values()))


def terminate_context() -> None:
    """Wait until the closed sockets' last messages are sent (at most their LINGER)."""
    if _process is not None and _process.pid == os.getpid():
        _process.gate.close()
        _process.context.destroy(linger=1000)


def _raise_file_limit() -> None:
    """Beyond the limit nobody new gets in: libzmq spins on tcp, and aborts the process on ipc."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _configure(socket: zmq.Socket[bytes], address: str) -> None:
    socket.setsockopt(zmq.IPV6, int("[" in address))
    socket.setsockopt(zmq.LINGER, 1000)
    socket.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER)
    socket.setsockopt(zmq.RCVHWM, SEND_HIGH_WATER)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 5000)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10000)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)


class Bound(NamedTuple):
    """A ROUTER at its address."""

    socket: zmq.Socket[bytes]
    policy: Policy
    """Who may speak there."""
    lock: FileLock | None
    """Keeps a second server away from an ipc path."""


def bound_router(endpoint: Endpoint) -> Bound:
    """A ROUTER bound to an endpoint.

    Raises:
        EndpointError: the address is in use or cannot be bound, or a key cannot be used.
    """
    name, address, keys = endpoint
    secret = read_secret(keys / "server.secret") if keys else None
    lock = _prepare_ipc(name, Path(address[6:])) if address.startswith("ipc://") else None
    socket = context().socket(zmq.ROUTER)
    _configure(socket, address)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_REQUEST_BYTES.get(name, MAX_FRAME_BYTES))
    if secret is not None:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, secret.secret.encode())
    policy = _policy(endpoint)
    gate().guard(socket, name, policy)
    try:
        socket.bind(address)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        if lock is not None:
            lock.release()
        if error.errno == zmq.EADDRINUSE:
            raise EndpointError(
                f"{name}: {address} is in use by another program; end it, or choose another "
                "port in the endpoints file (port * takes a free one)"
            ) from None
        raise EndpointError(f"{name}: cannot bind {address}: {error}") from None
    return Bound(socket, policy, lock)


def _policy(endpoint: Endpoint) -> Policy:
    if endpoint.address.startswith("ipc://"):
        return SameUser(os.getuid())
    if endpoint.keys is not None:
        return KeyHolders(endpoint.keys)
    log.warning(
        "%s: every user of this machine may connect to %s (insecure_loopback)",
        endpoint.name,
        endpoint.address,
    )
    return Anyone()


def _prepare_ipc(name: str, path: Path) -> FileLock:
    """Take the lock of an ipc path, then remove the socket that an ended process left there."""
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_folder(name, path)
        taken = lock.acquire()
    except OSError as error:
        raise EndpointError(f"{name}: cannot use {path}: {error}") from None
    if not taken:
        raise EndpointError(
            f"{name}: another process serves {path}; stop that suite first (apex stop)"
        )
    if path.exists() or path.is_symlink():
        if not stat.S_ISSOCK(path.lstat().st_mode):
            lock.release()
            raise EndpointError(f"{name}: {path} is there and is no socket; remove it")
        path.unlink()
    return lock


def _check_folder(name: str, path: Path) -> None:
    """Raise `EndpointError` where others could put a socket of theirs in this one's place."""
    try:
        status = path.parent.lstat()
    except OSError:
        return  # not there yet: the server makes it
    if status.st_uid not in (os.getuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EndpointError(
            f"{name}: others can write to {path.parent}; let the socket lie in a directory of "
            "your own (mode 0700)"
        )


def connected_dealer(endpoint: Endpoint, role: Role) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """A DEALER that connects to an endpoint, now or when somebody binds it, and its monitor.

    The monitor is there before the connection, which may stand within microseconds.

    Raises:
        EndpointError: the key of this role cannot be used.
    """
    if endpoint.address.startswith("ipc://"):
        _check_folder(endpoint.name, Path(endpoint.address[6:]))
    keys = client_keys(endpoint.keys, role) if endpoint.keys else None
    socket = context().socket(zmq.DEALER)
    _configure(socket, endpoint.address)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    if keys is not None:
        own, server = keys
        socket.setsockopt(zmq.CURVE_PUBLICKEY, own.public.encode())
        socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode())
        socket.setsockopt(zmq.CURVE_SERVERKEY, server.public.encode())
    monitor = socket.get_monitor_socket(
        zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | HANDSHAKE_FAILURES
    )
    socket.connect(endpoint.address)
    return socket, monitor


class Pollable(Protocol):
    """What a `Poller` can wait for."""

    def pollables(self) -> list[zmq.Socket[bytes] | int]:
        """Sockets and file descriptors that become readable when there is something to do."""
        ...


class Waker:
    """Lets one thread wake another that waits in a `Poller`."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def wake(self) -> None:
        """End the wait of the thread that polls this waker."""
        os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        """Forget the wake-ups so far; the woken thread calls this."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            pass

    def pollables(self) -> list[zmq.Socket[bytes] | int]:
        return [self._descriptor]

    def close(self) -> None:
        os.close(self._descriptor)


class Poller:
    """Waits until one of several servers, clients or wakers has something to do."""

    def __init__(self, *sources: Pollable) -> None:
        self._poller = zmq.Poller()
        for source in sources:
            for pollable in source.pollables():
                self._poller.register(pollable, zmq.POLLIN)

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds; whether there is something to do."""
        return bool(self._poller.poll(max(0, int(timeout_s * 1000))))
