"""Launcher with fake child processes: which it restarts, and its exit code."""

from __future__ import annotations

import faulthandler
import itertools
import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from apex.launch import engine
from apex.launch.local import Launcher
from apex.runs.directory import RunDirectory
from tests.support.services import prepared


class Child:
    """Fake process: exits at once with the next code of its daemon's script, or keeps running."""

    pid = 1
    sentinels: list[int]
    scripts: dict[str, list[int]]
    starts: list[str]
    stop_after: int | None
    """Exit code of a child that makes the test stop the launcher."""

    def __init__(self, name: str, **rest: object) -> None:
        self.name = name
        self.exitcode: int | None = None
        self.sentinel = os.eventfd(1)  # readable, so that no wait lasts
        Child.sentinels.append(self.sentinel)

    def start(self) -> None:
        Child.starts.append(self.name)
        if Child.scripts.get(self.name):
            self.exitcode = Child.scripts[self.name].pop(0)

    def terminate(self) -> None:
        self.exitcode = 0

    def join(self, timeout: float) -> None:
        """Do nothing: the child has exited."""

    def close(self) -> None:
        """Stop the launcher if this exit code was `stop_after`."""
        if self.exitcode == Child.stop_after:
            os.kill(os.getpid(), signal.SIGTERM)


def launch(run: RunDirectory, *, is_engine: bool = True) -> int:
    """Run a launcher. Returns its exit code."""
    clock = itertools.count(0.0, 100.0)  # no child ever ends within a second of its start
    context = SimpleNamespace(Process=Child)
    return Launcher(
        run, ["replay", "learner"], is_engine=is_engine, context=context, clock=clock.__next__
    ).run()


@pytest.fixture(autouse=True)
def children() -> Iterator[None]:
    """Reset the children before a test, and the signal handlers after it."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, engine.REVIVE)
    handlers = [signal.getsignal(number) for number in numbers]
    Child.starts, Child.sentinels, Child.stop_after = [], [], None
    yield
    for sentinel in Child.sentinels:
        os.close(sentinel)
    faulthandler.unregister(signal.SIGUSR1)
    for number, handler in zip(numbers, handlers):
        signal.signal(number, handler)


def test_launcher_continues_without_older_log_lines_when_the_disk_is_full(tmp_path, caplog):
    run = prepared(tmp_path, "run.log_max_mb=0.001")
    log = run.logs / "replay.log"
    log.with_name("replay.log.1").mkdir(parents=True)  # no file can be written there
    log.write_text("x" * 1001)
    Child.scripts = {"replay": [79], "learner": [78]}
    assert launch(run) == 78
    assert log.read_text() == "" and "cannot keep its older lines" in caplog.text


@pytest.mark.parametrize("is_engine", [True, False], ids=["engine", "attach"])
def test_only_the_engine_rotates_engine_log(tmp_path, is_engine):
    run = prepared(tmp_path, "run.log_max_mb=0.001")
    run.logs.mkdir(exist_ok=True)
    for name in ("engine", "replay"):
        (run.logs / f"{name}.log").write_text("x" * 1001)
    Child.scripts = {"replay": [79], "learner": [78]}
    assert launch(run, is_engine=is_engine) == 78
    assert (run.logs / "replay.log.1").exists()
    assert (run.logs / "engine.log.1").exists() == is_engine


def test_launcher_exits_with_the_last_daemons_code_when_none_is_left(tmp_path):
    Child.scripts = {"replay": [70, -9, 0, 80, 79], "learner": [78]}
    assert launch(prepared(tmp_path)) == 79
    # Crashes, kills and clean ends are started again; what a restart cannot fix is not.
    assert Child.starts.count("replay") == 5 and Child.starts.count("learner") == 1


def test_launcher_exits_0_when_stopped_after_crashes(tmp_path):
    Child.scripts, Child.stop_after = {"learner": [70, 78]}, 78
    assert launch(prepared(tmp_path)) == 0
    assert Child.starts == ["replay", "learner", "learner"]
