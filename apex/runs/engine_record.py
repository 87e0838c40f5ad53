"""`engine.json` of a run: which process keeps its daemons alive."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

from apex.runs.directory import RunDirectory

EngineName = Literal["supervisor", "local"]


class EngineRecord(msgspec.Struct, frozen=True):
    """The run's engine, as `engine.json` in its directory names it."""

    engine: EngineName
    pid: int
    started_ticks: int
    """Start time of that process since boot, so that a reused process id is told apart."""
    supervisor_socket: str = ""
    supervisor_password: str = ""


def started_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def living_engine(run: RunDirectory) -> EngineRecord | None:
    """The engine that runs this run's daemons now, if any."""
    try:
        record = msgspec.json.decode(run.engine_file.read_bytes(), type=EngineRecord)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return record if started_ticks(record.pid) == record.started_ticks else None
