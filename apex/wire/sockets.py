"""Sockets with every option that keeps a daemon alive, set in this one place."""

from __future__ import annotations

import os
import resource
import stat
from pathlib import Path
from typing import Protocol

import zmq  # noqa: TID251

from apex.errors import EndpointError
from apex.files import FileLock

MAX_FRAME_BYTES = 256 * 1024 * 1024
SEND_HIGH_WATER = 64
"""Messages that may wait for one peer; our streams have at most a few dozen in flight."""

_context: tuple[int, zmq.Context[zmq.Socket[bytes]]] | None = None


def context() -> zmq.Context[zmq.Socket[bytes]]:
    """This process's context, made after the fork: a child never uses its parent's."""
    global _context
    if _context is None or _context[0] != os.getpid():
        _raise_file_limit()
        _context = (os.getpid(), zmq.Context())
        _context[1].set(zmq.MAX_SOCKETS, 4096)
    return _context[1]


def terminate_context() -> None:
    """Wait until the closed sockets' last messages are sent (at most their LINGER)."""
    if _context is not None and _context[0] == os.getpid():
        _context[1].destroy(linger=1000)


def _raise_file_limit() -> None:
    """libzmq aborts the process when a connection finds no file descriptor."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(65536, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _configure(socket: zmq.Socket[bytes]) -> None:
    socket.setsockopt(zmq.LINGER, 1000)
    socket.setsockopt(zmq.SNDHWM, SEND_HIGH_WATER)
    socket.setsockopt(zmq.RCVHWM, SEND_HIGH_WATER)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 5000)
    socket.setsockopt(zmq.HEARTBEAT_IVL, 2000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 10000)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)


def bound_router(name: str, address: str) -> tuple[zmq.Socket[bytes], FileLock | None]:
    """A ROUTER bound to `address`, and the lock that keeps a second server away from an ipc path.

    Raises:
        EndpointError: the address is in use or cannot be bound.
    """
    lock = _prepare_ipc(name, Path(address[6:])) if address.startswith("ipc://") else None
    socket = context().socket(zmq.ROUTER)
    _configure(socket)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
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
    return socket, lock


def _prepare_ipc(name: str, path: Path) -> FileLock:
    """Take the lock of an ipc path, then remove the socket that an ended process left there."""
    lock = FileLock(path.with_name(path.name + ".lock"))
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
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


def connected_dealer(address: str) -> tuple[zmq.Socket[bytes], zmq.Socket[bytes]]:
    """A DEALER that connects to `address`, now or when somebody binds it, and its monitor.

    The monitor is there before the connection, which may stand within microseconds.
    """
    socket = context().socket(zmq.DEALER)
    _configure(socket)
    socket.setsockopt(zmq.IMMEDIATE, 1)
    monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED)
    socket.connect(address)
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
