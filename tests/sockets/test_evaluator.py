"""The evaluator in one process: schedule, reported values, best checkpoint."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.algos.q_learning import QPolicy
from apex.daemons import cpu_affinity
from apex.daemons.evaluator import daemon as evaluator
from apex.daemons.evaluator.daemon import EvaluatorDaemon
from apex.daemons.evaluator.device import evaluation_device
from apex.daemons.learner.parameter_versions import Publication
from apex.envs.spec import EnvSpec
from apex.errors import ConfigError
from apex.launch.prepare import preset_config
from apex.networks import parameters
from apex.plugins import Extensions
from apex.runs import checkpoint
from apex.runs.checkpoint import Manifest
from apex.runs.directory import RunDirectory
from apex.wire.messages import EvaluationReport
from tests.support.clock import Clock
from tests.support.evaluations import BAD, GOOD, Choice, evaluated, publication
from tests.support.services import prepared, service_of
from tests.support.stand_ins import LearnerStandIn, PollerStandIn

torch.set_num_threads(1)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return prepared(
        tmp_path, "evaluator.episodes=4", "evaluator.num_envs=2", "algorithm.hidden=[]",
        "env.clip_rewards=true", "env.life_loss_ends=true", make_env=Choice,
    )  # fmt: skip


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    lines = (run.metrics / "evaluator.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def kept(run: RunDirectory) -> list[tuple[str, float | None]]:
    """Every best checkpoint, with its mean return."""
    paths = checkpoint.all_paths(run.checkpoints, "best")
    return [(path.name, checkpoint.load(path).manifest.mean_return) for path in paths]


def test_x_values_belong_to_the_evaluated_parameters_when_newer_ones_arrive(run):
    played = publication(run, 3, GOOD)
    newer = [publication(run, version, BAD) for version in range(4, 20)]
    learner = evaluated(run, played, meanwhile=newer)
    assert learner.reports == [EvaluationReport(returns=(15.0,) * 4)]
    (row,) = rows(run)
    x_values = ("param_version", "learner_step", "env_steps", "step", "train_s", "mean_return")
    assert [row[name] for name in x_values] == [3, 300, 3000, 3000, 30.0, 15.0]
    best = checkpoint.best(run.checkpoints)
    manifest = best.manifest
    assert (manifest.learner_step, manifest.env_steps, manifest.train_s) == (300, 3000, 30.0)
    assert (manifest.param_version, manifest.mean_return, manifest.best_return) == (3, 15.0, 15.0)
    expected = parameters.decode(played.data)
    saved = parameters.decode(best.parameters())
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


def test_returns_are_unclipped_and_of_whole_episodes(run):
    learned_from = run.config().env
    assert learned_from.clip_rewards and learned_from.life_loss_ends
    played = run.config().evaluation_env
    assert not played.life_loss_ends
    learner = evaluated(run, publication(run, 2, BAD), publication(run, 3, GOOD))
    assert [report.returns for report in learner.reports] == [(-9.0,) * 4, (15.0,) * 4]


def test_best_checkpoint_is_of_the_best_full_evaluation_across_restarts(run):
    evaluated(run, publication(run, 2, BAD))
    assert kept(run) == [("best_0000000200", -9.0)]
    # After seven turns each environment has finished one episode.
    learner = evaluated(run, publication(run, 3, GOOD), stop_at=7)
    assert kept(run) == [("best_0000000200", -9.0)] and learner.reports == []
    evaluated(run, publication(run, 4, GOOD), publication(run, 5, BAD))
    assert kept(run) == [("best_0000000400", 15.0)]
    evaluated(run, publication(run, 6, BAD))
    assert kept(run) == [("best_0000000400", 15.0)]
    best = [(row["param_version"], row["best_mean_return"]) for row in rows(run)]
    assert best == [(2, -9.0), (4, 15.0), (5, 15.0), (6, 15.0)]


def evaluated_at(run: RunDirectory, cpu_s: float) -> list[float]:
    """Times at which evaluations of `cpu_s` CPU seconds begin; the first learner step is at 21 s.

    Each wait takes a second; the learner has newer parameters at every request. After 400 seconds
    the evaluator is asked to stop.
    """

    def publish(learner: LearnerStandIn) -> Publication | None:
        if learner.beats[-1].phase == "evaluating":
            if learner.beats[-2].phase == "idle":
                began.append(clock.now)
            return None
        if learner.asked == len(answered):
            return None
        answered.append(int(clock.now) if clock.now > 20 else 0)
        return publication(run, answered[-1], GOOD)

    def second(_: float) -> None:
        clock.now += 1.0
        if clock.now >= 400.0:
            service.stop()

    clock, began, answered = Clock(0.0), [], []
    used = itertools.count()
    with service_of(run, "evaluator") as service:
        EvaluatorDaemon(
            service, Extensions(Choice), clock, cpu_clock=lambda: cpu_s * next(used),
            learner=LearnerStandIn(publish), poller=PollerStandIn(second),
        ).run()  # fmt: skip
    return began


PACED = ("evaluator.period_s=50.0", "evaluator.max_share=0.1")


@pytest.mark.parametrize(
    ("core_s", "restarted", "expected"),
    [
        # 50 s after the first parameters that have learned, then every 50 s.
        (0.5, False, [72, 123, 174, 225, 276, 327, 378]),
        # 7.5 s of CPU on each core are a tenth of them in 75 s.
        (7.5, False, [72, 148, 224, 300, 376]),
        (7.5, True, [22, 98, 174, 250, 326]),
    ],
)
def test_evaluations_wait_for_learning_their_period_and_their_cpu_share(
    tmp_path, core_s, restarted, expected
):
    run = prepared(
        tmp_path, *PACED, "evaluator.episodes=4", "evaluator.num_envs=2", "algorithm.hidden=[]",
        make_env=Choice,
    )  # fmt: skip
    if restarted:
        with service_of(run, "evaluator") as service:
            service.mark_clean()
    assert evaluated_at(run, core_s * cpu_affinity.of_run()) == pytest.approx(expected, abs=2)


def test_best_is_saved_once_the_disk_accepts_checkpoints_again(run, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    def after_the_second(folder: Path, manifest: Manifest, data: bytes) -> None:
        (full if manifest.param_version == 3 else save_best)(folder, manifest, data)

    save_best = checkpoint.save_best
    monkeypatch.setattr(evaluator.checkpoint, "save_best", after_the_second)
    evaluated(run, publication(run, 2, BAD), publication(run, 3, GOOD))
    assert kept(run) == [("best_0000000200", -9.0)]
    evaluated(run, publication(run, 3, GOOD), publication(run, 4, GOOD))
    assert kept(run) == [("best_0000000400", 15.0)]
    assert [row["best_mean_return"] for row in rows(run)] == [-9.0, 15.0, 15.0, 15.0]


def test_evaluator_lowers_its_priority_before_it_makes_its_environments(run, monkeypatch):
    """Threads, the emulator's too, keep the priority at which they start."""
    happened: list[object] = []

    def make() -> Choice:
        happened.append("made")
        return Choice()

    monkeypatch.setattr(os, "nice", happened.append)
    with service_of(run, "evaluator") as service:
        service.stop()
        evaluator.body(service, Extensions(make))
    assert happened == [15, "made", "made"], "both environments"


class FailsOnce(Choice):
    """The first two environments raise at their fourth step."""

    made = 0

    def __init__(self) -> None:
        FailsOnce.made += 1
        self.number = FailsOnce.made
        self.all_steps = 0

    def step(self, action):
        self.all_steps += 1
        if self.number <= 2 and self.all_steps == 4:
            raise ValueError("the cart fell off the table")
        return super().step(action)


def test_evaluation_restarts_after_an_environment_fault(tmp_path, monkeypatch, caplog):
    run = prepared(
        tmp_path, "evaluator.episodes=4", "evaluator.num_envs=2", "algorithm.hidden=[]",
        make_env=FailsOnce,
    )  # fmt: skip
    monkeypatch.setattr(FailsOnce, "made", 0)  # preparing a run makes one environment
    clock, left, failed = Clock(), [1, 3], []

    def publish(learner: LearnerStandIn) -> Publication | None:
        beat = learner.beats[-1]
        if beat.env_faults and not failed:
            failed.append(clock.now)
        if learner.reports:
            service.stop()
        return publication(run, left.pop(0), GOOD) if left and beat.phase == "idle" else None

    with service_of(run, "evaluator") as service:
        learner = LearnerStandIn(publish)
        EvaluatorDaemon(
            service, Extensions(FailsOnce), clock, learner=learner, poller=PollerStandIn(clock.move)
        ).run()
    assert "the cart fell off the table" in caplog.text
    phases = [phase for phase, _ in itertools.groupby(beat.phase for beat in learner.beats)]
    assert phases == ["idle", "evaluating", "recreating", "idle", "evaluating", "idle"]
    assert learner.beats[-1].env_faults == 1
    assert 1.0 <= clock.now - failed[0] <= 1.0 + 2 * evaluator.WAIT_S, "a second later"
    (report,) = learner.reports
    assert report.returns == (15.0,) * 4
    (line,) = (run.metrics / "evaluator.jsonl").read_text().splitlines()
    assert json.loads(line)["param_version"] == 3


class OnlyAct(QPolicy):
    """Defines `act` alone."""

    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        raise NotImplementedError


FRAMES = EnvSpec("Test-v0", (12, 12), "uint8", 2, 4)
VECTORS = EnvSpec("Test-v0", (3,), "float32", 0, 4)


@pytest.mark.parametrize(
    ("chosen", "learner", "spec", "kind", "cuda", "expected"),
    [
        ("auto", "auto", FRAMES, QPolicy, True, "cuda"),
        ("auto", "auto", FRAMES, QPolicy, "full", "cpu"),
        ("auto", "auto", FRAMES, QPolicy, False, "cpu"),
        ("auto", "cuda", FRAMES, QPolicy, False, "cpu"),
        ("auto", "cpu", FRAMES, QPolicy, True, "cpu"),
        ("auto", "auto", VECTORS, QPolicy, True, "cpu"),
        ("auto", "auto", FRAMES, OnlyAct, True, "cpu"),
        ("cpu", "auto", FRAMES, QPolicy, True, "cpu"),
    ],
)
def test_device_of_evaluations(
    chosen: str, learner: str, spec: EnvSpec, kind: type[QPolicy], cuda: bool | str,
    expected: str, monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    def zeros(*shape: int, device: torch.device) -> None:
        if cuda == "full":
            raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    settings = [f"evaluator.device={chosen}", f"learner.device={learner}"]
    config = preset_config("cartpole", settings)
    precision, policy = torch.get_float32_matmul_precision(), kind(torch.nn.Linear(3, 4))
    monkeypatch.setattr(torch, "zeros", zeros)
    try:
        device = evaluation_device(config, spec, policy)
    finally:
        torch.set_float32_matmul_precision(precision)
    assert device == torch.device(expected)


def test_missing_device_of_evaluations_is_refused_by_its_setting():
    config = preset_config("cartpole", ["evaluator.device=cuda:77"])
    with pytest.raises(ConfigError, match=r"evaluator\.device = 'cuda:77': cannot use this device"):
        evaluation_device(config, VECTORS, QPolicy(torch.nn.Linear(3, 4)))


def test_heartbeats_carry_the_steps_of_the_longest_unfinished_episode(run):
    beats = evaluated(run, publication(run, 3, GOOD)).beats
    steps = [beat.env_steps for beat in beats if beat.phase == "evaluating"]
    assert set(steps) >= {0, 1, 2} and max(steps) <= 3, "episodes have three steps"
    assert {beat.env_steps for beat in beats if beat.phase == "idle"} == {0}
