"""Date, command, machine, commit and package versions of a measurement.

Works without git and without the packages that a machine lacks: on a machine for measuring, a
copy of the files is enough. `APEX_COMMIT` names the commit of such a copy.
"""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from apex.host import hardware

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("torch", "numpy", "gymnasium", "ale-py", "mujoco", "pyzmq", "lz4", "msgspec")
COMMIT = "APEX_COMMIT"
"""Environment variable with the commit of files that are not a clone."""
UNKNOWN = "unknown"


def provenance() -> dict[str, Any]:
    """Provenance of a measurement, for the result files."""
    machine = hardware.this_machine()
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "machine": f"{machine.cpu}, {machine.cores} cores, {machine.memory_bytes / 2**30:.0f} GiB, "
        + (", ".join(machine.gpus) or "no GPU"),
        "commit": commit(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of the installed packages of `PACKAGES`."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """Short hash of the commit, with a `+` if files differ from it; `unknown` without git."""
    head = _git("rev-parse", "--short", "HEAD")
    if head is None:
        return os.environ.get(COMMIT, UNKNOWN)
    return head + ("+" if _git("status", "-s") else "")


def _git(*arguments: str) -> str | None:
    """The output of a git command; None if it failed or git is not installed."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return None if done.returncode else done.stdout.strip()
