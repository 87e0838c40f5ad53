"""The launcher with children that are none: who is started again, and how it ends itself."""

from __future__ import annotations

import errno
import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from apex.launch import local
from apex.launch.local import Launcher
from tests.support.services import prepared


class Child:
    """Ends at once with the next exit code of its daemon's script; without one it lives on."""

    pid, sentinel = 1, None
    scripts: dict[str, list[int]]
    starts: list[str]

    def __init__(self, name: str, **rest: object) -> None:
        self.name = name
        self.exitcode: int | None = None

    def start(self) -> None:
        Child.starts.append(self.name)
        if Child.scripts.get(self.name):
            self.exitcode = Child.scripts[self.name].pop(0)

    def terminate(self) -> None:
        self.exitcode = 0

    def join(self, timeout: float) -> None:
        """It has ended."""

    def close(self) -> None:
        """It has ended."""


@pytest.fixture
def launcher(tmp_path, monkeypatch) -> Any:
    clock = itertools.count(0.0, 100.0)  # no child ever ends within a second of its start
    monkeypatch.setattr(local, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(local.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(local.faulthandler, "register", lambda number, **rest: None)
    monkeypatch.setattr(local.multiprocess.connection, "wait", lambda *rest, **more: None)
    made: Any = Launcher(prepared(tmp_path), ["replay", "learner"])
    made._context = SimpleNamespace(Process=Child)
    Child.starts = []
    return made


def test_a_full_disk_costs_older_lines_and_not_the_launcher(launcher, monkeypatch, caplog):
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(local.shutil, "copyfile", full)
    launcher._run.logs.mkdir(exist_ok=True)
    log = launcher._run.logs / "replay.log"
    log.write_text("x" * (launcher._log_bytes + 1))
    launcher._bound_logs()
    assert log.read_text() == "" and "No space left on device" in caplog.text


def test_crash_of_one_daemon_ends_no_other_and_its_code_is_told_when_none_is_left(launcher):
    Child.scripts = {"replay": [70, -9, 0, 80, 79], "learner": [78]}
    assert launcher.run() == 79
    # Crashes, kills and clean ends are started again; what a restart would not mend is not.
    assert Child.starts.count("replay") == 5 and Child.starts.count("learner") == 1


def test_launcher_that_was_asked_to_stop_ends_with_0_whoever_crashed_before(launcher):
    Child.scripts = {"learner": [70, 78]}
    tend = launcher._tend

    def tend_then_stop(daemon: object) -> None:
        tend(daemon)
        if any(each.given_up for each in launcher._daemons):
            launcher._on_stop(15, None)

    launcher._tend = tend_then_stop
    assert launcher.run() == 0
    assert Child.starts == ["replay", "learner", "learner"]
