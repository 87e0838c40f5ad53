"""Create ZeroMQ sockets with the options and access control that every daemon needs."""

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
"""Largest frame in bytes that an endpoint accepts; others accept `MAX_FRAME_BYTES`."""
SEND_HIGH_WATER = 64
"""Messages queued for one peer at most; apex has at most a few dozen in flight."""
HANDSHAKE_FAILURES = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class _ProcessState(NamedTuple):
    """The ZeroMQ objects that exist once per process."""

    pid: int
    context: zmq.Context[zmq.Socket[bytes]]
    gate: Gate


_process_state: _ProcessState | None = None


def _get_process_state() -> _ProcessState:
    """Return this process's state; after a fork the child creates its own."""
    global _process_state
    if _process_state is None or _process_state.pid != os.getpid():
        _raise_file_limit()
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        context.set(zmq.MAX_SOCKETS, 4096)
        _process_state = _ProcessState(os.getpid(), context, Gate(context))
    return _process_state


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """The ZeroMQ context of this process."""
    return _get_process_state().context


def gate() -> Gate:
    """The gate that authenticates connections to the endpoints of this process."""
    return _get_process_state().gate


class Connections(NamedTuple):
    """Resources that a process's connections use."""

    open_files: int
    max_open_files: int
    strangers: int
    """Handshakes that were refused."""


def connections() -> Connections:
    """Count this process's open files (mostly connections), their limit and refused handshakes."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        opened = len(os.listdir("/proc/self/fd"))
    except OSError:  # the limit is reached: listing needs a file descriptor too
        opened = limit
    return Connections(opened, limit, sum(gate().refused.values()))


def terminate_context() -> None:
    """Close all sockets, waiting until their last messages are sent (at most their LINGER)."""
    if _process_state is not None and _process_state.pid == os.getpid():
        _process_state.gate.close()
        _process_state.context.destroy(linger=1000)


def _raise_file_limit() -> None:
    """Raise the limit of open files to 65536 where allowed.

    At the limit libzmq accepts no connection: it spins on tcp and aborts the process on ipc.
    """
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
    """A ROUTER socket that is bound to its address."""

    socket: zmq.Socket[bytes]
    policy: Policy
    """Decides who may connect."""
    lock: FileLock | None
    """Prevents a second server from binding the same ipc path."""


def bound_router(endpoint: Endpoint) -> Bound:
    """Create a ROUTER socket and bind it to an endpoint.

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
                f"{name}: {address} is in use by another program; stop that program, or choose "
                "another port in the endpoints file (port * takes a free one)"
            ) from None
        raise EndpointError(f"{name}: cannot bind {address}: {error}") from None
    return Bound(socket, policy, lock)


def _policy(endpoint: Endpoint) -> Policy:
    if endpoint.address.startswith("ipc://"):
        return SameUser(os.getuid())
    if endpoint.keys is not None:
        return KeyHolders(endpoint.keys)
    log.warning(
        "%s: every user of this machine can connect to %s (insecure_loopback = true)",
        endpoint.name,
        endpoint.address,
    )
    return Anyone()


def _prepare_ipc(name: str, path: Path) -> FileLock:
    """Lock an ipc path, then remove the socket file that an earlier process left there."""
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_folder(name, path)
        taken = lock.acquire()
    except OSError as error:
        raise EndpointError(f"{name}: cannot use {path}: {error}") from None
    if not taken:
        raise EndpointError(
            f"{name}: another process serves {path}; stop that run first (`apex stop`)"
        )
    if path.exists() or path.is_symlink():
        if not stat.S_ISSOCK(path.lstat().st_mode):
            lock.release()
            raise EndpointError(f"{name}: {path} exists and is not a socket; remove it")
        path.unlink()
    return lock


def _check_folder(name: str, path: Path) -> None:
    """Raise `EndpointError` when other users could replace the socket with their own."""
    try:
        status = path.parent.lstat()
    except OSError:
        return  # does not exist yet: the server creates it
    if status.st_uid not in (os.getuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EndpointError(
            f"{name}: other users can write to {path.parent}; put the socket into a directory "
            "of your own (mode 0700)"
        )


def connected_dealer(endpoint: Endpoint, role: Role) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """Create a DEALER socket that connects to an endpoint, and its monitor socket.

    The endpoint need not be bound yet. The monitor is created first, because a connection may be
    established within microseconds.

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
    """An object that a `Poller` can wait for."""

    def pollables(self) -> list[zmq.Socket[bytes] | int]:
        """Sockets and file descriptors that become readable when there is work to do."""
        ...


class Waker:
    """Wakes a thread that waits in a `Poller`, from another thread."""

    def __init__(self) -> None:
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def wake(self) -> None:
        """End the wait of the thread that polls this waker."""
        os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        """Reset the waker; called by the thread that was woken."""
        try:
            os.eventfd_read(self._descriptor)
        except BlockingIOError:
            pass

    def pollables(self) -> list[zmq.Socket[bytes] | int]:
        return [self._descriptor]

    def close(self) -> None:
        os.close(self._descriptor)


class Poller:
    """Waits until one of several servers, clients or wakers has work to do."""

    def __init__(self, *sources: Pollable) -> None:
        self._poller = zmq.Poller()
        for source in sources:
            for pollable in source.pollables():
                self._poller.register(pollable, zmq.POLLIN)

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds; return whether there is work to do."""
        return bool(self._poller.poll(max(0, int(timeout_s * 1000))))
