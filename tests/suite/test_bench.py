"""The benchmarks' harness: figures by literal numbers, workers and daemons as real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from apex.errors import ApexError
from benchmarks.peers import scenarios as peers
from benchmarks.peers.__main__ import pins
from benchmarks.peers.processes import Peer
from benchmarks.run import __main__ as command
from benchmarks.run import plot, scenarios
from benchmarks.run.daemons import Daemon
from benchmarks.run.figures import figure, in_turn, line
from benchmarks.run.scenarios import params
from benchmarks.run.workers import Worker
from tests.support.processes import gone, suite_processes
from tests.support.waiting import wait_until
from tests.support.worker_steps import failing, naming_its_process

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = {
    "actor", "actor-random", "learner", "learner-data", "replay", "suite", "params", "scale",
    "start", "inference", "precision",
}  # fmt: skip


def test_a_figure_is_the_median_of_the_pairs_beside_the_extremes_of_their_ratios():
    one = figure("case", "u/s", [(2.0, 4.0), (3.0, 4.0), (9.0, 10.0)], "limit", bar=0.6, more=7)
    assert (one.value, one.limit) == (3.0, 4.0)
    assert (one.ratio, one.ratio_min, one.ratio_max) == (0.75, 0.5, 0.9)
    assert one.margins == pytest.approx((1.25, 0.8333, 1.5), abs=1e-3)
    assert one.extra == {"more": 7}


def test_where_less_is_better_a_ratio_above_its_bar_is_on_the_bad_side():
    one = figure("case", "ms", [(3.0, 1.0), (1.0, 1.0)], "limit", bar=1.5, lower_is_better=True)
    assert one.margins == pytest.approx((0.75, 0.5, 1.5))


def test_a_goal_is_held_against_the_value_itself():
    one = figure("case", "s", [(0.2, 9.0)], "limit", goal=0.3, lower_is_better=True)
    assert one.margins == pytest.approx((1.5, 1.5, 1.5))


def test_a_line_shows_the_case_that_is_farthest_from_its_bar():
    cases = [
        figure("unbarred", "u", [(1.0, 100.0)], "limit"),
        figure("good", "u", [(1.0, 1.0)], "limit", bar=0.9),
        figure("bad", "u", [(0.8, 1.0)], "limit", bar=0.9),
    ]
    shown = line("name", cases)
    assert (shown["scenario"], shown["case"], shown["ratio"]) == ("name", "bad", 0.8)
    assert [case["case"] for case in shown["cases"]] == ["unbarred", "good", "bad"]
    assert {"value", "unit", "limit", "ratio", "ratio_min", "ratio_max"} <= shown.keys()


def test_figure_and_limit_take_turns_in_coming_first():
    order: list[str] = []

    def noted(what: str, value: float) -> float:
        order.append(what)
        return value

    pairs = in_turn(lambda: noted("value", 1.0), lambda: noted("limit", 2.0), 3)
    assert pairs == [(1.0, 2.0)] * 3
    assert order == ["value", "limit", "limit", "value", "value", "limit"]


def test_a_worker_works_on_its_cores_and_is_gone_when_it_is_closed(tmp_path: Path):
    core = max(os.sched_getaffinity(0))
    with Worker(naming_its_process, [core], str(tmp_path / "named")) as worker:
        pid, cores = json.loads((tmp_path / "named").read_text())
        assert cores == [core] and pid != os.getpid()
        assert worker.measure(0.05) > 0
    assert gone(pid)


def test_a_worker_that_cannot_be_made_says_so():
    with pytest.raises(TimeoutError, match="failing was not ready"):
        Worker(failing, os.sched_getaffinity(0))


def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path):
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
    wait_until(lambda: gone(pid), 10.0, "the worker has ended")


def test_a_daemon_that_has_ended_is_told_with_the_end_of_its_log(tmp_path: Path):
    daemon = Daemon(["-c", "raise SystemExit('why')"], os.sched_getaffinity(0), tmp_path / "log")
    daemon.process.wait()
    with pytest.raises(ApexError, match="why"):
        daemon.check()


def test_every_scenario_has_a_name_that_only_takes_and_no_other_is_taken():
    assert set(scenarios.NAMES + scenarios.ON_DEMAND) == SCENARIOS
    assert all(callable(scenarios.load(name)) for name in SCENARIOS)
    refused = CliRunner().invoke(command.main, ["--only", "act"])
    assert refused.exit_code == 2 and "'act' is not one of" in refused.output


def test_a_scenario_measures_real_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(params, "SECONDS", 0.1)
    shown = params.latency(tmp_path)
    # The network of `pong`: 3.29 million parameters of 4 bytes.
    assert 13_000_000 < shown.extra["bytes"] < 13_500_000
    assert 0 < shown.ratio_min <= shown.ratio <= shown.ratio_max
    wait_until(lambda: not suite_processes(str(tmp_path)), 10.0, "what it started has ended")


def test_the_plot_has_the_cases_with_a_bar_or_a_goal_and_leaves_the_others_out(tmp_path: Path):
    cases = [
        figure("barred", "u", [(0.8, 1.0)], "limit", bar=0.9),
        figure("goal", "u", [(3.0, 1.0)], "limit", goal=2.0),
        figure("neither", "u", [(1.0, 1.0)], "limit"),
    ]
    path = tmp_path / "some.json"
    path.write_text(json.dumps(line("some", cases)))
    assert [name for name, _ in plot.with_bars([path])] == ["some: barred", "some: goal"]
    plot.draw([path], "title", tmp_path / "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_every_peer_has_a_scenario_and_the_exact_versions_of_its_environment():
    names = {"reverb", "buffers", "sb3", "rllib-dqn", "rllib-impala", "sample-factory"}
    assert peers.ENVIRONMENTS.keys() == names
    assert all(callable(peers.load(name)) for name in names)
    packages = {name: pins(environment) for name, environment in peers.ENVIRONMENTS.items()}
    assert packages["reverb"]["dm-reverb"] == "0.14.0"
    assert packages["sb3"]["torch"] == packages["sample-factory"]["torch"] == "2.13.0"


def test_a_peer_without_its_environment_is_told_how_to_make_it(tmp_path: Path):
    with pytest.raises(ApexError, match="none: no such environment; `make bench-peers`"):
        Peer("none", "sb3", os.sched_getaffinity(0), tmp_path)


def test_the_guard_ends_all_that_a_command_has_started():
    script = (
        "import subprocess as s, sys\n"
        "print(s.Popen(['sleep', '600'], start_new_session=True).pid, flush=True)\n"
    )
    command = [sys.executable, "-m", "benchmarks.peers.guard", sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert gone(int(done.stdout))
