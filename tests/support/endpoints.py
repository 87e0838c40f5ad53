"""Endpoints at free ports."""

from __future__ import annotations

import socket
from pathlib import Path

from apex.wire.endpoints import Endpoint


def tcp_endpoint(folder: Path | None, name: str = "replay.insert") -> Endpoint:
    """An endpoint at a free port of loopback, with the keys of a folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return Endpoint(name, f"tcp://127.0.0.1:{probe.getsockname()[1]}", folder)
