"""Work for the worker process of a benchmark test."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from benchmarks.run.workers import Step


def naming_its_process(path: str) -> Step:
    """Records its process id and cores; each step counts 2."""
    Path(path).write_text(json.dumps([os.getpid(), sorted(os.sched_getaffinity(0))]))
    return lambda: 2.0


def beginning() -> Step:
    """Begins work that is not done before `waiting` returns; counts 1."""

    def step() -> float:
        time.sleep(0.05)
        return 1.0

    return step


def waiting() -> None:
    """Takes as long as ten steps."""
    time.sleep(0.5)


def failing() -> Step:
    """Raises when it is constructed."""
    raise SystemExit("no such thing")
