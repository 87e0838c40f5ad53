"""A run's `run.json`: the code, command and machine that created it.

    created       time of creation (UTC)
    preset        the preset used; empty: a configuration file or the defaults
    commands      the command that created the run, and one for each --resume
    versions      versions of apex, Python and the packages that apex requires
    code          commit of the clone that apex runs from, and whether files differ from it
    hardware      cores, memory (bytes), CPU and GPU models, operating system

If files of the clone differ from the commit, `run.diff` next to it has the differences (for
`git apply`), unless they are longer than 1 MB.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import msgspec

from apex.host.files import replace_file
from apex.host.hardware import Machine
from apex.runs.directory import RunDirectory

log = logging.getLogger("apex.runs.provenance")

CLONE = Path(__file__).resolve().parents[2]
"""The clone that apex runs from; not a clone if apex was installed from a wheel."""
DISTRIBUTION = "apex-suite"
DEVELOPER_EXTRAS = re.compile(r"extra == .(dev|docs)\b")
"""Marks requirements that only development needs."""
MAX_DIFF_BYTES = 1_000_000
GIT_TIMEOUT_S = 10.0


class Command(msgspec.Struct, frozen=True):
    """A command that created or resumed a run."""

    time: str
    """UTC, such as `2026-01-31T12:00:00Z`."""
    arguments: list[str]
    """The interpreter's arguments (`sys.orig_argv`)."""
    directory: str
    """The working directory."""
    commit: str
    """Commit of apex's clone, with a `+` if files differ from it; empty if there is no clone."""


class Code(msgspec.Struct, frozen=True):
    """The state of the clone that apex runs from."""

    commit: str
    dirty: bool
    """Whether tracked files differ from the commit."""
    diff_sha256: str
    """SHA-256 of `git diff HEAD --binary`; empty if nothing differs."""


class Hardware(msgspec.Struct, frozen=True):
    """The machine that a run was created on."""

    cores: int
    memory_bytes: int
    cpu: str
    gpus: list[str]
    system: str


class Origin(msgspec.Struct, frozen=True):
    """The contents of `run.json`."""

    created: str
    preset: str
    commands: list[Command]
    versions: dict[str, str]
    code: Code | None
    hardware: Hardware


def files_of_new_run(machine: Machine, preset: str) -> dict[str, bytes]:
    """The contents of `run.json`, and of `run.diff` if files differ, for a new run.

    Args:
        machine: the machine that creates the run.
        preset: the preset used; empty if none.

    Returns:
        Contents by file name.
    """
    code, diff = clone_state(CLONE)
    command = _this_command(code)
    hardware = Hardware(
        machine.cores, machine.memory_bytes, machine.cpu, list(machine.gpus), platform.platform()
    )
    origin = Origin(command.time, preset, [command], versions(), code, hardware)
    files = {"run.json": _encoded(origin)}
    return files | ({"run.diff": diff} if 0 < len(diff) <= MAX_DIFF_BYTES else {})


def add_command(run: RunDirectory) -> None:
    """Add this process's command to the `run.json` of a resumed run, if the run has that file."""
    origin = read(run)
    if origin is not None:
        command = _this_command(clone_state(CLONE)[0])
        added = msgspec.structs.replace(origin, commands=[*origin.commands, command])
        replace_file(run.origin_file, _encoded(added))


def read(run: RunDirectory) -> Origin | None:
    """Read a run's `run.json`; None if it is missing or invalid."""
    try:
        return msgspec.json.decode(run.origin_file.read_bytes(), type=Origin)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("cannot read %s: %s", run.origin_file, error)
        return None


def _encoded(origin: Origin) -> bytes:
    return msgspec.json.format(msgspec.json.encode(origin))


def _this_command(code: Code | None) -> Command:
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    commit = "" if code is None else code.commit + "+" * code.dirty
    words = [_text(word) for word in sys.orig_argv]
    return Command(now, words, _text(os.getcwd()), commit)


def _text(path: str) -> str:
    """A path or a word as JSON can hold it: bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode(errors="backslashreplace")


def versions() -> dict[str, str]:
    """Versions of Python, apex, and the installed packages that apex requires."""
    found = {"python": platform.python_version()}
    try:
        own = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # apex is on the path but not installed
        return found
    found["apex"] = own.version
    for requirement in own.requires or ():
        name = re.match(r"[\w.-]+", requirement)
        if name is not None and not DEVELOPER_EXTRAS.search(requirement):
            try:
                found[name.group()] = metadata.version(name.group())
            except metadata.PackageNotFoundError:
                pass
    return found


def clone_state(root: Path) -> tuple[Code | None, bytes]:
    """The state of the git clone at `root` and its diff to the commit; None if it is no clone."""
    if not (root / ".git").exists():
        return None, b""
    try:
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        diff = _git(root, "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff")
    except (OSError, subprocess.SubprocessError) as error:  # no git, or another user's clone
        log.info("run.json will have no commit, since git failed: %s", error)
        return None, b""
    digest = hashlib.sha256(diff).hexdigest() if diff else ""
    return Code(commit, bool(diff), digest), diff


def _git(root: Path, *arguments: str) -> bytes:
    """The output of a git command. Raises `OSError` and `subprocess.SubprocessError`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    return subprocess.run(
        ["git", "-C", str(root), *arguments],
        env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=GIT_TIMEOUT_S,
        check=True,
    ).stdout
