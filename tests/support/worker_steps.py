"""Work for the worker process of a benchmark test."""

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks.run.workers import Step


def naming_its_process(path: str) -> Step:
    """Records its process id and cores; each step counts 2."""
    Path(path).write_text(json.dumps([os.getpid(), sorted(os.sched_getaffinity(0))]))
    return lambda: 2.0


def failing() -> Step:
    """Raises when it is constructed."""
    raise SystemExit("no such thing")
