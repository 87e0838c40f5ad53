"""Addresses of the daemons: read, check and resolve an endpoints file."""

from __future__ import annotations

import ipaddress
import os
import socket
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import tomli_w

from apex.config.loading import read_toml
from apex.errors import ConfigError, EndpointError
from apex.host.paths import install_root, socket_directory

IPC_MAX_BYTES = 107
"""Longest path of a unix socket on Linux, in bytes."""

SOCKETS = "{sockets}"
"""Placeholder in an endpoints file for the run's private socket directory."""


class ReplayEndpoints(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Addresses that the replay server binds."""

    insert: str
    sample: str


class LearnerEndpoints(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Address that the learner binds."""

    params: str


class InferenceEndpoints(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Address that the inference server binds."""

    act: str


class Endpoint(NamedTuple):
    """One address and its keys."""

    name: str
    """Such as `replay.insert`."""
    address: str
    keys: Path | None = None
    """The key folder, for tcp (`apex/wire/curve_keys.py`)."""


class Endpoints(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All addresses of a suite."""

    replay: ReplayEndpoints
    learner: LearnerEndpoints
    inference: InferenceEndpoints | None = None
    """Required with `actor.inference = "central"`."""
    insecure_loopback: bool = False
    """Accept every user of this machine on loopback addresses without keys."""
    keys: str = ""
    """The key folder; a relative path is relative to the endpoints file."""

    def of(self, name: str) -> Endpoint:
        """Return an endpoint by name. Raises `EndpointError` when the file does not have it."""
        address = self.addresses().get(name)
        if address is None:
            raise EndpointError(
                f'endpoints: {name} is missing; actor.inference = "central" needs it, '
                "see deploy/endpoints.toml for an example"
            )
        guarded = self.keys and address.startswith("tcp://")
        return Endpoint(name, address, Path(self.keys) if guarded else None)

    def addresses(self) -> dict[str, str]:
        """The addresses by endpoint name, such as `replay.insert`."""
        found = {
            "replay.insert": self.replay.insert,
            "replay.sample": self.replay.sample,
            "learner.params": self.learner.params,
        }
        return found | ({"inference.act": self.inference.act} if self.inference else {})


def default_file() -> Path:
    """Path of `deploy/endpoints.toml` in the checkout or the installed distribution."""
    return install_root() / "deploy" / "endpoints.toml"


def load(path: Path | None = None) -> Endpoints:
    """Read an endpoints file and check its addresses.

    Args:
        path: the file; `default_file()` when None.

    Raises:
        EndpointError: the file or a key is missing, or an address cannot be used.
    """
    path = path or default_file()
    try:
        raw = read_toml(path)
    except ConfigError as error:
        raise EndpointError(
            f"endpoints file {error}; `apex run` writes one into the run directory, "
            "and deploy/endpoints.toml is a template for your own"
        ) from None
    return _convert(raw, path)


def _convert(raw: dict[str, Any], path: Path) -> Endpoints:
    try:
        endpoints = msgspec.convert(raw, Endpoints, strict=True)
    except msgspec.ValidationError as error:
        reason, _, where = str(error).partition(" - at `$")
        section = where.rstrip("`").lstrip(".")
        raise EndpointError(
            f"{path}: {section + ': ' if section else ''}{reason}; expected the keys "
            "replay.insert, replay.sample, learner.params and, for central inference, inference.act"
        ) from None
    if endpoints.keys:
        keys = path.absolute().parent / Path(endpoints.keys).expanduser()
        endpoints = msgspec.structs.replace(endpoints, keys=str(keys))
    _check_all(endpoints)
    fixed = [a for a in endpoints.addresses().values() if not a.endswith(":*")]
    if len(set(fixed)) != len(fixed):
        raise EndpointError(f"{path}: two endpoints have the same address: {', '.join(fixed)}")
    return endpoints


def _check_all(endpoints: Endpoints) -> None:
    for name, address in endpoints.addresses().items():
        scheme, separator, rest = address.partition("://")
        if not separator or scheme not in ("ipc", "tcp"):
            raise EndpointError(f"{name} = '{address}': expected ipc://PATH or tcp://ADDRESS:PORT")
        if scheme == "ipc":
            _check_ipc(name, rest)
        else:
            _check_tcp(name, address, rest, endpoints)


def _check_ipc(name: str, path: str) -> None:
    if not path.startswith(("/", SOCKETS)):
        raise EndpointError(
            f"{name}: expected an absolute ipc path, or one that begins with {SOCKETS}; "
            f"got '{path}'"
        )
    if len(os.fsencode(path)) > IPC_MAX_BYTES:
        raise EndpointError(
            f"{name}: expected an ipc path of at most {IPC_MAX_BYTES} bytes (the limit of Linux), "
            f"got {len(os.fsencode(path))}; choose a shorter one or set XDG_RUNTIME_DIR: {path}"
        )


def _check_tcp(name: str, address: str, rest: str, endpoints: Endpoints) -> None:
    host, _, port = rest.rpartition(":")
    if port != "*" and not (port.isdigit() and 0 < int(port) < 65536):
        raise EndpointError(
            f"{name} = '{address}': expected a port from 1 to 65535, or * for a free one"
        )
    try:
        loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        raise EndpointError(
            f"{name} = '{address}': expected a numeric address such as 127.0.0.1"
        ) from None
    if endpoints.keys:
        return
    if not loopback:
        raise EndpointError(
            f"{name} = '{address}': tcp beyond loopback needs keys; create them with "
            '`apex keys new DIR` and set keys = "DIR" at the top of the endpoints file'
        )
    if not endpoints.insecure_loopback:
        raise EndpointError(
            f"{name} = '{address}': without keys every user of this machine can connect over tcp "
            'on loopback; create keys with `apex keys new DIR` and set keys = "DIR" at the top of '
            "the endpoints file, or set insecure_loopback = true to accept the risk"
        )


def resolve(endpoints: Endpoints, run_directory: Path) -> Endpoints:
    """Replace the placeholders of an endpoints file: the socket directory and free tcp ports.

    Raises:
        EndpointError: the directory cannot be created, or an address is too long or does not
            belong to this machine.
    """
    addresses = endpoints.addresses()
    if any(SOCKETS in address for address in addresses.values()):
        folder = socket_directory(run_directory)
        addresses = {name: a.replace(SOCKETS, str(folder)) for name, a in addresses.items()}
    addresses = _with_ports(addresses)
    resolved = msgspec.structs.replace(
        endpoints,
        replay=ReplayEndpoints(addresses["replay.insert"], addresses["replay.sample"]),
        learner=LearnerEndpoints(addresses["learner.params"]),
        inference=InferenceEndpoints(addresses["inference.act"]) if endpoints.inference else None,
    )
    _check_all(resolved)
    return resolved


def _with_ports(addresses: dict[str, str]) -> dict[str, str]:
    """Replace each port `*` by a free one; all are held until the end, so that they differ."""
    resolved = dict(addresses)
    with ExitStack() as held:
        for name, address in addresses.items():
            if address.startswith("tcp://") and address.endswith(":*"):
                host = address[len("tcp://") : -len(":*")]
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                probe = held.enter_context(socket.socket(family, socket.SOCK_STREAM))
                try:
                    probe.bind((host.strip("[]"), 0))
                except OSError as error:
                    raise EndpointError(
                        f"{name} = '{address}': cannot listen on this address: {error.strerror}"
                    ) from None
                resolved[name] = f"tcp://{host}:{probe.getsockname()[1]}"
    return resolved


def dump(endpoints: Endpoints) -> str:
    """Format the endpoints as TOML."""
    table = msgspec.to_builtins(endpoints)
    return tomli_w.dumps({name: value for name, value in table.items() if value is not None})
