"""A run's `engine.json`: the process that starts and restarts its daemons."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

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


def started_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None if it has ended or is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def living_engine(run: RunDirectory) -> EngineRecord | None:
    """The run's engine if its process is running, else None."""
    try:
        record = msgspec.json.decode(run.engine_file.read_bytes(), type=EngineRecord)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return record if started_ticks(record.pid) == record.started_ticks else None
