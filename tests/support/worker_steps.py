"""What a benchmark's worker, which is a process of its own, is given to do."""

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks.run.workers import Step


def naming_its_process(path: str) -> Step:
    """Writes down which process and cores it has; each step is worth 2."""
    Path(path).write_text(json.dumps([os.getpid(), sorted(os.sched_getaffinity(0))]))
    return lambda: 2.0


def failing() -> Step:
    """Cannot be made."""
    raise SystemExit("no such thing")
