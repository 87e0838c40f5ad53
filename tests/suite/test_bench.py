"""Benchmark harness: its workers, daemons and scenarios as real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apex.errors import ApexError
from benchmarks.gpu import sweep
from benchmarks.run.daemons import Daemon
from benchmarks.run.scenarios import params
from benchmarks.run.workers import Worker
from tests.support.processes import gone, suite_processes
from tests.support.waiting import wait_until
from tests.support.worker_steps import beginning, failing, naming_its_process, waiting

ROOT = Path(__file__).resolve().parents[2]


def test_worker_runs_on_its_cores_until_closed(tmp_path: Path):
    core = max(os.sched_getaffinity(0))
    with Worker(naming_its_process, [core], str(tmp_path / "named")) as worker:
        pid, cores = json.loads((tmp_path / "named").read_text())
        assert cores == [core] and pid != os.getpid()
        assert worker.measure(0.05) > 0
    assert gone(pid)


def test_rate_counts_the_time_until_what_was_begun_is_done():
    with Worker(beginning, os.sched_getaffinity(0), finish=waiting) as worker:
        # At most two steps begin within 0.1 s; they are done after 0.55 s or later.
        assert 0 < worker.measure(0.1) < 2 / 0.55
        assert 0 < worker.measure(0.1) < 2 / 0.55


def test_worker_raises_timeout_when_its_start_fails():
    with pytest.raises(TimeoutError, match="failing was not ready"):
        Worker(failing, os.sched_getaffinity(0))


def test_worker_exits_when_its_parent_is_killed(tmp_path: Path):
    named = tmp_path / "named"
    script = (
        "import os\nfrom benchmarks.run.workers import Worker\n"
        "from tests.support.worker_steps import naming_its_process\n"
        "if __name__ == '__main__':\n"
        f"    Worker(naming_its_process, os.sched_getaffinity(0), {str(named)!r})\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    (tmp_path / "starts.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, tmp_path / "starts.py"], cwd=ROOT, env=environment)
    assert done.returncode == -9
    pid = json.loads(named.read_text())[0]
    wait_until(lambda: gone(pid), 60.0, "the worker has ended")


def test_check_raises_with_the_log_tail_when_a_daemon_has_exited(tmp_path: Path):
    daemon = Daemon(["-c", "raise SystemExit('why')"], os.sched_getaffinity(0), tmp_path / "log")
    daemon.process.wait()
    with pytest.raises(ApexError, match="why"):
        daemon.check()


def test_latency_scenario_measures_real_processes_and_stops_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(params, "SECONDS", 0.1)
    shown = params.latency(tmp_path)
    # The network of `pong`: 3.29 million parameters of 4 bytes.
    assert 13_000_000 < shown.extra["bytes"] < 13_500_000
    assert 0 < shown.ratio_min <= shown.ratio <= shown.ratio_max
    wait_until(lambda: not suite_processes(str(tmp_path)), 60.0, "what it started has ended")


def test_guard_kills_all_descendants_when_a_command_exits():
    script = (
        "import subprocess as s, sys\n"
        "print(s.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)\n"
    )
    command = [sys.executable, "-m", "benchmarks.peers.guard", sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0
    assert gone(int(done.stdout))


def test_sweep_finds_only_daemons_of_runs_below_its_folders(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "input()", "--run"]
    runs = (tmp_path / "ours" / "run", tmp_path / "others" / "run")
    started = [subprocess.Popen([*command, str(run)], stdin=subprocess.PIPE) for run in runs]
    try:
        wait_until(lambda: [*sweep.daemons([f"{tmp_path}/ours/"])] == [started[0].pid])
        assert set(sweep.daemons([f"{tmp_path}/"])) == {one.pid for one in started}
    finally:
        for one in started:
            one.communicate(b"\n")
