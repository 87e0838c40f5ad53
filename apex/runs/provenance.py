"""`run.json` of a run: which code, command and machine made it.

    created       when (UTC)
    preset        the preset that it was made from; empty: a file, or defaults
    commands      the command that made it, and one for each --resume
    versions      of apex, Python and the packages that apex needs
    code          commit of the clone that apex runs from, and whether files differ from it
    hardware      cores, memory, model of the cores and of the GPUs

Where files of the clone differ from the commit, `run.diff` beside it says how (`git apply` takes
it), unless that is longer than 1 MB.
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
"""The clone that apex runs from; not one where apex was installed from a wheel."""
DISTRIBUTION = "apex-suite"
OF_DEVELOPERS = re.compile(r"extra == .(dev|docs)\b")
"""Requirements that no run needs."""
MAX_DIFF_BYTES = 1_000_000
GIT_TIMEOUT_S = 10.0


class Command(msgspec.Struct, frozen=True):
    """A command that made a run or went on with it."""

    time: str
    arguments: list[str]
    """As the interpreter got them."""
    directory: str
    """In which it was given."""
    commit: str
    """Of apex's clone, with a `+` where files differ from it; empty: apex runs from no clone."""


class Code(msgspec.Struct, frozen=True):
    """The state of the clone that apex runs from."""

    commit: str
    dirty: bool
    """Whether files differ from the commit; new files that git does not track are not counted."""
    diff_sha256: str
    """Of `git diff HEAD --binary`; empty: nothing differs."""


class Hardware(msgspec.Struct, frozen=True):
    """The machine that a run was made on."""

    cores: int
    memory_bytes: int
    cpu: str
    gpus: list[str]
    system: str


class Origin(msgspec.Struct, frozen=True):
    """What `run.json` holds."""

    created: str
    preset: str
    commands: list[Command]
    versions: dict[str, str]
    code: Code | None
    hardware: Hardware


def files_of_new_run(machine: Machine, preset: str) -> dict[str, bytes]:
    """Make `run.json`, and `run.diff` where there is one, for a run that this process makes.

    Args:
        machine: that it is made on.
        preset: that it is made from; empty if none.

    Returns:
        The files' contents by name.
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
    """Note this process's command in a run that it resumes; runs of older versions have no file."""
    origin = read(run)
    if origin is not None:
        command = _this_command(clone_state(CLONE)[0])
        added = msgspec.structs.replace(origin, commands=[*origin.commands, command])
        replace_file(run.origin_file, _encoded(added))


def read(run: RunDirectory) -> Origin | None:
    """What a run's `run.json` says; None where it is missing or not readable."""
    try:
        return msgspec.json.decode(run.origin_file.read_bytes(), type=Origin)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("%s: %s", run.origin_file, error)
        return None


def _encoded(origin: Origin) -> bytes:
    return msgspec.json.format(msgspec.json.encode(origin))


def _this_command(code: Code | None) -> Command:
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    commit = "" if code is None else code.commit + "+" * code.dirty
    return Command(now, list(sys.orig_argv), os.getcwd(), commit)


def versions() -> dict[str, str]:
    """Versions of Python, apex, and those packages that apex needs and that are installed."""
    found = {"python": platform.python_version()}
    try:
        own = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:  # apex is on the path, but not installed
        return found
    found["apex"] = own.version
    for requirement in own.requires or ():
        name = re.match(r"[\w.-]+", requirement)
        if name is not None and not OF_DEVELOPERS.search(requirement):
            try:
                found[name.group()] = metadata.version(name.group())
            except metadata.PackageNotFoundError:
                pass
    return found


def clone_state(root: Path) -> tuple[Code | None, bytes]:
    """The state of the git clone at `root`, and how its files differ from the commit."""
    if not (root / ".git").exists():
        return None, b""
    try:
        commit = _git(root, "rev-parse", "HEAD").decode().strip()
        diff = _git(root, "diff", "HEAD", "--binary", "--no-color", "--no-ext-diff")
    except (OSError, subprocess.SubprocessError) as error:  # no git, or a clone of another user
        log.info("no commit in run.json: %s", error)
        return None, b""
    digest = hashlib.sha256(diff).hexdigest() if diff else ""
    return Code(commit, bool(diff), digest), diff


def _git(root: Path, *arguments: str) -> bytes:
    """What git prints. Raises `OSError` and `subprocess.SubprocessError`."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    return subprocess.run(
        ["git", "-C", str(root), *arguments],
        env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=GIT_TIMEOUT_S,
        check=True,
    ).stdout
