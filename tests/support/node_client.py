"""The Node.js actor of examples/clients/node, installed, and its processes."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from apex.runs.directory import RunDirectory
from tests.support.paths import ROOT

CLIENT = ROOT / "examples" / "clients" / "node"
NODE_VERSION = (20, 15)
UNREACHABLE = re.compile(
    r"ENOTFOUND|EAI_AGAIN|ECONNREFUSED|ECONNRESET|ETIMEDOUT|ENETUNREACH|EHOSTUNREACH|ERR_SOCKET_TIMEOUT"
)
"""Errors of npm when it cannot reach its registry."""


def need_node(*programs: str) -> None:
    """Skip the test without Node.js of the version that the client needs."""
    for program in ("node", *programs):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program}")
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    if tuple(map(int, version.stdout.strip("v\n").split(".")[:2])) < NODE_VERSION:
        pytest.skip(f"the client needs Node.js 20.15, this is {version.stdout.strip()}")


def installed(folder: Path) -> Path:
    """A copy of the client in `folder` with its packages installed; skips if it cannot be."""
    need_node("npm")
    shutil.copytree(CLIENT, folder, ignore=shutil.ignore_patterns("node_modules"))
    options = ["--prefer-offline", "--no-audit", "--no-fund", "--no-package-lock"]
    patience = ["--fetch-retries=1", "--fetch-timeout=20000"]
    done = subprocess.run(
        ["npm", "install", *options, *patience],
        cwd=folder, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    if done.returncode != 0 and (reason := UNREACHABLE.search(done.stderr)):
        pytest.skip(f"npm cannot reach its registry: {reason.group()}")
    assert done.returncode == 0, done.stderr
    return folder


class NodeActor:
    """A process of `node actor.js` and its output."""

    def __init__(self, client: Path, run: RunDirectory, *arguments: str) -> None:
        self._log = run.path / "node.out"
        command = ["node", str(client / "actor.js"), "--run", str(run.path), *arguments]
        with self._log.open("wb") as output:
            self.popen = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def output(self) -> str:
        return self._log.read_text()

    def end(self) -> None:
        self.popen.send_signal(signal.SIGTERM)
        self.finish(15.0)

    def finish(self, timeout_s: float) -> None:
        assert self.popen.wait(timeout=timeout_s) == 0, self.output()

    def sums(self) -> tuple[int, int, int]:
        """Environment steps, inserted items and acknowledged items, from its last lines."""
        found = re.search(
            r": (\d+) env steps, .*\nactor_007: (\d+) items inserted, (\d+) acknowledged\n",
            self.output(),
        )
        assert found, self.output()
        steps, inserted, acknowledged = map(int, found.groups())
        return steps, inserted, acknowledged
