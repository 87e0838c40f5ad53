"""What the stages share: JSON lines of results, the time that is left, guarded checks."""

from __future__ import annotations

import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
OUT = Path(os.environ.get("OUT", "/tmp/apex-gpu-out"))
"""Folder of the results."""
WORK = Path(os.environ.get("WORK", "/tmp/apex-gpu"))
"""Folder of everything else."""
STAGE = os.environ.get("STAGE", Path(sys.argv[0]).stem)
LIMIT_S = float(os.environ.get("STAGE_LIMIT_S", "600"))
"""Seconds after which `measure.sh` ends the stage."""
MARGIN_S = 3.0
"""Seconds that a stage keeps for its end."""
BEGAN = time.monotonic()


def without_paths(text: str) -> str:
    """A text that names no folder of this machine, so that results can be kept in the project.

    Paths in the checkout and in installed packages become relative.
    """
    home = Path.home()
    for path, name in (
        (f"{OUT}", "OUT"),
        (f"{WORK}", "WORK"),
        (f"{ROOT}/", ""),
        (f"{ROOT}", "."),
        (f"{home}/", "~/"),
    ):
        text = text if path in ("/", "//") else text.replace(path, name)
    return re.sub(r"[^\s\"']*/site-packages/", "", text)


def emit(**values: Any) -> None:
    """Write one JSON line to the results and to the stage's log."""
    values = {"stage": STAGE, "t": round(time.monotonic() - BEGAN, 2), **values}
    line = without_paths(json.dumps(values, default=str))
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    print(line, flush=True)


def left_s() -> float:
    """Seconds of this stage that are left, less a margin."""
    return LIMIT_S - MARGIN_S - (time.monotonic() - BEGAN)


def check(name: str, function: Callable[[], dict[str, Any]]) -> bool:
    """Run one check and write its result; a check that fails does not end the stage.

    Args:
        name: of the check.
        function: returns figures; `ok` among them is false if the check has failed.
    """
    began = time.monotonic()
    try:
        values = function()
    except Exception as error:
        traceback.print_exc()
        last = traceback.extract_tb(error.__traceback__)[-1]
        values = {
            "ok": False,
            "error": f"{type(error).__name__}: {error}"[:500],
            "where": f"{last.filename}:{last.lineno}",
        }
    good = bool(values.pop("ok", True))
    emit(check=name, ok=good, seconds=round(time.monotonic() - began, 2), **values)
    return good


def relative(found: Any, expected: Any) -> float:
    """||found - expected|| / ||expected||."""
    a, b = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-12))
