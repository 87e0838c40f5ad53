"""A run's `engine.json`: the process that starts and restarts its daemons."""

from __future__ import annotations

from typing import Literal

import msgspec

from apex.host.orphans import started_ticks
from apex.runs.directory import RunDirectory

EngineName = Literal["supervisor", "local"]


class EngineRecord(msgspec.Struct, frozen=True):
    """The contents of `engine.json`."""

    engine: EngineName
    pid: int
    started_ticks: int
    """Start time of that process in clock ticks since boot, to detect a reused process id."""
    supervisor_socket: str = ""
    supervisor_password: str = ""


def living_engine(run: RunDirectory) -> EngineRecord | None:
    """The run's engine if its process is running, else None."""
    try:
        record = msgspec.json.decode(run.engine_file.read_bytes(), type=EngineRecord)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return record if started_ticks(record.pid) == record.started_ticks else None
