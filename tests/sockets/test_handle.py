"""The run handle of a script: waiting for the end, metrics as arrays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from apex.daemons.metrics import JsonLines
from apex.errors import RunError, UsageError
from apex.host.files import FileLock
from apex.launch import Run
from apex.runs import recorded_metrics
from apex.runs.directory import RunDirectory
from tests.support.services import prepared
from tests.support.waiting import wait_until


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run that was prepared and not started."""
    return Run(prepared(tmp_path, "actor.count=2").path)


def test_metrics_are_arrays_by_column_with_the_older_file_first(run: Run) -> None:
    (run.metrics / "learner.jsonl.1").write_text('{"time": 1.5, "step": 10, "loss": 0.5}\n')
    (run.metrics / "learner.jsonl").write_text(
        '{"time": 2.5, "step": 20, "loss": null, "state": "training"}\n'
        '{"time": 3.5, "step": 30, "extra": true}\n'
        '{"time": 4.5, "st'
    )
    found = run.metrics()
    assert list(found) == ["time", "step", "loss", "state", "extra"]
    for name, expected in (
        ("time", [1.5, 2.5, 3.5]),
        ("step", [10.0, 20.0, 30.0]),
        ("loss", [0.5, np.nan, np.nan]),
        ("extra", [np.nan, np.nan, 1.0]),
    ):
        assert found[name].dtype == np.float64
        np.testing.assert_array_equal(found[name], expected)
    assert found["state"].dtype == object and found["state"].tolist() == [None, "training", None]


def test_metrics_are_empty_before_the_first_record_and_refused_for_an_unknown_daemon(
    run: Run,
) -> None:
    assert run.metrics("actor_001") == {}
    with pytest.raises(UsageError, match=r"no metrics of 'actor_002'.*: replay, learner, evalu"):
        run.metrics("actor_002")
    (run.metrics / "actor_002.jsonl").write_text('{"step": 1}\n')  # of an attached actor
    assert run.metrics("actor_002")["step"].tolist() == [1.0]


def test_handle_is_also_the_run_directory(run: Run) -> None:
    assert isinstance(run, RunDirectory) and run.config().actor.count == 2
    assert run.metrics == run.path / "metrics"
    assert (run.metrics / "learner.jsonl") == run.path / "metrics" / "learner.jsonl"


def test_no_line_is_lost_or_doubled_while_the_file_is_rotated(tmp_path: Path) -> None:
    path, ended = tmp_path / "a.jsonl", threading.Event()
    lines = JsonLines(path, max_bytes=400)
    written = 0

    def write() -> None:
        nonlocal written
        while not ended.is_set():
            lines.write({"n": written})
            written += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        wait_until(lambda: path.with_name("a.jsonl.1").exists(), 20.0, "a rotation")
        for _ in range(300):
            before = written
            numbers = [record["n"] for record in recorded_metrics.records(path)]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert numbers[-1] >= before - 1
    finally:
        ended.set()
        thread.join()
        lines.close()


def test_wait_returns_the_outcome_or_none(run: Run) -> None:
    assert run.wait() == ""
    run.outcome_file.write_text(json.dumps({"reason": "9 env steps (max_env_steps = 9)"}))
    assert run.wait(timeout_s=0.0) == "9 env steps (max_env_steps = 9)"
    run.outcome_file.write_text("[]")
    assert run.wait(timeout_s=0.0) == ""


def test_wait_ends_at_its_timeout_while_a_daemon_lives(run: Run) -> None:
    lock = FileLock(run.lock_file("learner"))
    assert lock.acquire()
    lock.write(str(os.getpid()))
    with pytest.raises(TimeoutError, match=r"is still running after 0\.3 s"):
        run.wait(timeout_s=0.3)
    lock.release()
    assert run.wait(timeout_s=0.3) == ""


def test_wait_raises_when_the_launcher_gave_up(run: Run) -> None:
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(79)"])
    with pytest.raises(RunError, match=r"the launcher ended with code 79; see .*engine\.log"):
        Run(run.path, process).wait()
