"""Check addresses and keys: stale socket files, ports in use, long socket paths, private keys."""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

from apex.doctor.findings import Finding
from apex.doctor.processes import describe, listeners
from apex.errors import EndpointError
from apex.host.files import is_locked, writer_problem
from apex.runs.directory import RunDirectory
from apex.wire import endpoints as addresses
from apex.wire.endpoints import IPC_MAX_BYTES, SOCKETS, Endpoints


def check_new_sockets(endpoints: Endpoints, folder: Path) -> Iterator[Finding]:
    """Check that a new run could create its sockets.

    Args:
        endpoints: as `apex run` reads them, not yet resolved.
        folder: the socket directory that the run would get.
    """
    of_ipc = [a.removeprefix("ipc://") for a in endpoints.addresses().values() if SOCKETS in a]
    longest = max((len(os.fsencode(a.replace(SOCKETS, str(folder)))) for a in of_ipc), default=0)
    found, expected = f"{longest} bytes, in {folder.parent}", f"at most {IPC_MAX_BYTES} bytes"
    if longest > IPC_MAX_BYTES:
        remedy = "set XDG_RUNTIME_DIR to an existing directory with a short path"
        yield Finding("socket paths", "problem", found, expected, remedy)
    elif not _is_own(folder.parent):
        found = f"{folder.parent} is not a directory of yours"
        expected, remedy = "a directory of yours, or none yet", f"remove {folder.parent}"
        yield Finding("socket paths", "problem", found, expected, remedy)
    else:
        yield Finding("socket paths", "ok", found, expected)


def _is_own(folder: Path) -> bool:
    """Whether a directory belongs to this user, or does not exist and can be made."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return os.access(folder.parent, os.W_OK)
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def check_socket_files(run: RunDirectory, endpoints: Endpoints) -> Iterator[Finding]:
    """Find ipc socket files of a run without a server, which would hold the lock beside each."""
    paths = [Path(a[6:]) for a in endpoints.addresses().values() if a.startswith("ipc://")]
    left = [p for p in paths if p.exists() and not is_locked(p.with_name(p.name + ".lock"))]
    if left:
        found = f"socket files left by a process that has ended: {', '.join(map(str, left))}"
        remedy = "none needed: the next server replaces them, `apex runs rm` removes them"
        yield Finding(f"run {run.path}", "note", found, remedy=remedy)


def check_ports(run: RunDirectory, endpoints: Endpoints) -> Iterator[Finding]:
    """Check that the tcp addresses of this run's daemons that are down can be bound."""
    living = run.living()
    for name, address in endpoints.addresses().items():
        if not address.startswith("tcp://") or name.partition(".")[0] in living:
            continue
        reason = _refusal(address)
        if reason is None:
            continue
        port = int(address.rpartition(":")[2])
        holding = listeners(port) if reason == errno.EADDRINUSE else []
        by = f" by {', '.join(map(describe, holding))}" if holding else ""
        yield Finding(
            f"run {run.path}",
            "problem",
            f"{name}: {address} cannot be bound ({os.strerror(reason)}){by}",
            "a free port of this machine",
            f"end that process, or set another port in {run.endpoints_file}",
        )


def _refusal(address: str) -> int | None:
    """The errno with which binding a tcp address fails now; None if it succeeds."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as libzmq does
        try:
            probe.bind((host.strip("[]"), int(port)))
        except OSError as error:
            return error.errno
    return None


def check_keys(run: RunDirectory, endpoints: Endpoints) -> Iterator[Finding]:
    """Check that no other user can read a secret key of this run or write a trusted public key."""
    if not endpoints.keys:
        return
    from apex.wire.curve_keys import check_private

    folder = Path(endpoints.keys)
    problems: dict[str, str] = {}
    for path in sorted(folder.glob("*.secret")):
        try:
            check_private(path)
        except EndpointError as error:
            problems[str(error)] = f"chmod 600 {quote(str(path))}, once the file is yours"
    for path in (*folder.glob("server.public"), *sorted(folder.glob("authorized/*.public"))):
        why = writer_problem(path)
        if why is not None:
            both = f"{quote(str(path.parent))} {quote(str(path))}"
            problems[f"key {path}: {why}"] = f"chmod go-w {both}"
    if not list(folder.glob("server.*")):
        problems[f"{folder} has no keys"] = f"apex keys new {quote(str(folder))}"
    for found, remedy in problems.items():
        yield Finding(
            f"run {run.path}", "problem", found, "keys that only you can read and write", remedy
        )


def default_endpoints() -> Endpoints:
    """The endpoints that `apex run` uses by default. Raises `EndpointError`."""
    return addresses.load()
