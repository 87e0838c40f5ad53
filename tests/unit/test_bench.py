"""Benchmark statistics against literal numbers."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from apex.algos.apex_dqn import ApexDQN
from apex.envs.spec import EnvSpec
from apex.errors import ApexError
from apex.execution.execution import Graphed
from apex.launch.prepare import preset_config
from benchmarks import provenance
from benchmarks.peers import scenarios as peers
from benchmarks.peers.__main__ import pins
from benchmarks.peers.processes import Peer
from benchmarks.run import __main__ as command
from benchmarks.run import plot, scenarios
from benchmarks.run.figures import figure, in_turn, line
from benchmarks.run.pong import NUM_ENVS, unwaited
from benchmarks.run.scenarios import gpu, suite
from tests.support.batches import batch_of, random_transitions
from tests.support.paths import ROOT
from tests.support.tape import Tape

SCENARIOS = {
    "actor", "actor-random", "learner", "learner-data", "replay", "suite", "params", "scale",
    "start", "inference", "precision", "gpu",
}  # fmt: skip


def test_figure_is_the_median_of_the_pairs_with_the_extreme_ratios():
    one = figure("case", "u/s", [(2.0, 4.0), (3.0, 4.0), (9.0, 10.0)], "limit", bar=0.6, more=7)
    assert (one.value, one.limit) == (3.0, 4.0)
    assert (one.ratio, one.ratio_min, one.ratio_max) == (0.75, 0.5, 0.9)
    assert one.margins == pytest.approx((1.25, 0.8333, 1.5), abs=1e-3)
    assert one.extra == {"more": 7}


def test_ratio_above_its_bar_is_bad_where_less_is_better():
    one = figure("case", "ms", [(3.0, 1.0), (1.0, 1.0)], "limit", bar=1.5, lower_is_better=True)
    assert one.margins == pytest.approx((0.75, 0.5, 1.5))


def test_goal_is_compared_with_the_value():
    one = figure("case", "s", [(0.2, 9.0)], "limit", goal=0.3, lower_is_better=True)
    assert one.margins == pytest.approx((1.5, 1.5, 1.5))


def test_summary_line_shows_the_case_farthest_from_its_bar():
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


def test_only_option_takes_each_scenarios_name_and_no_other():
    assert set(command.ONE) == SCENARIOS
    assert all(callable(scenarios.load(name)) for name in SCENARIOS)
    refused = CliRunner().invoke(command.main, ["--only", "act"])
    assert refused.exit_code == 2 and "'act' is not one of" in refused.output


def test_plot_has_only_the_cases_with_a_bar_or_a_goal(tmp_path: Path):
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


def test_peer_without_its_environment_raises_with_the_setup_command(tmp_path: Path):
    with pytest.raises(ApexError, match="none: no such environment; `make bench-peers`"):
        Peer("none", "sb3", os.sched_getaffinity(0), tmp_path)


def test_provenance_needs_neither_git_nor_every_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("numpy", "no-such-package"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("APEX_COMMIT", raising=False)
    found = provenance.provenance()
    assert found["commit"] == "unknown" and found["versions"].keys() == {"numpy"}
    monkeypatch.setenv("APEX_COMMIT", "abc1234")
    assert provenance.provenance()["commit"] == "abc1234"


def test_gpu_scenario_has_the_stages_of_the_measuring_kit() -> None:
    assert gpu.PARTS.keys() == {"learner", "learner-data", "inference", "suite"}
    script = (ROOT / "benchmarks" / "gpu" / "measure.sh").read_text()
    assert all(f"{name}) bench {name} " in script for name in gpu.PARTS)


def test_suite_is_measured_with_local_and_with_central_inference(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    measured: list[dict[str, Any]] = []
    monkeypatch.setattr(suite, "measure", lambda _, **given: measured.append(given) or [])
    assert [*gpu.suite(tmp_path)] == []
    assert [one["inference"] for one in measured] == ["local", "central"]
    assert f"actor.num_envs={NUM_ENVS}" in suite.SETTINGS
    for one in measured:
        settings = ["actor.count=0", "actor.num_envs=16", f"actor.inference={one['inference']}"]
        assert one["actors"] == preset_config("pong", settings).actor.count


def test_bare_loop_of_a_gpu_replays_its_update_from_the_first_measured_step_on() -> None:
    spec = EnvSpec("Test-v0", (3,), "float32", 0, 4)
    algorithm = ApexDQN(ApexDQN.Config(stream_hidden=(8,)), spec)
    learner, tape = algorithm.learner(torch.device("cpu")), Tape(tolerance=1e-5)
    batch = batch_of(random_transitions(algorithm, batch_size=4))
    step = unwaited(learner, batch, Graphed(learner, tape, 4))
    before, updates = tape.replayed, learner.updates
    assert [step(), step()] == [1, 1]
    assert (tape.replayed - before, learner.updates - updates) == (2, 2)
