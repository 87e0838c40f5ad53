"""The evaluator in one process: what it plays, where that stands on the curve, and the best."""

from __future__ import annotations

import json
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from apex.algos.registry import make_algorithm
from apex.daemons.evaluator import daemon as evaluator
from apex.daemons.evaluator.daemon import EvaluatorDaemon
from apex.daemons.learner.parameter_versions import Publication
from apex.evaluation.trained_policy import evaluation_env
from apex.networks import parameters
from apex.plugins import Extensions
from apex.runs import checkpoint
from apex.runs.directory import RunDirectory
from apex.wire.messages import EvaluationReport
from tests.support.services import ThreeLives, prepared, service_of

torch.set_num_threads(1)


class Choice(ThreeLives):
    """Action 1 gives 5 and action 0 takes 3."""

    rewards = (-3.0, 5.0)


BAD, GOOD = 0, 1
"""Actions, and the parameters that take them: returns of -9 and 15."""


class Connection:
    """Stands for the learner: newer parameters at each poll, and the reports that it was sent."""

    client = None

    def __init__(self, newer: Sequence[Publication]) -> None:
        self._newer = list(newer)
        self.reports: list[EvaluationReport] = []

    def poll(self) -> Publication | None:
        return self._newer.pop(0) if self._newer else None

    def ask_for_params(self) -> None:
        """Nobody listens."""

    def close(self) -> None:
        """Nothing is open."""

    def heartbeat(self, make: object) -> None:
        """Nobody listens."""

    def report(self, report: EvaluationReport) -> None:
        self.reports.append(report)


@pytest.fixture
def run(tmp_path) -> RunDirectory:
    return prepared(
        tmp_path, "evaluator.episodes=4", "evaluator.num_envs=2", "algorithm.hidden=[]",
        "env.clip_rewards=true", "env.life_loss_ends=true", make_env=Choice,
    )  # fmt: skip


@contextmanager
def evaluator_of(
    run: RunDirectory, clock: Callable[[], float] = time.monotonic
) -> Iterator[EvaluatorDaemon]:
    """One start of the evaluator, with `Connection` in place of its client."""
    with service_of(run, "evaluator") as service:
        daemon: Any = EvaluatorDaemon(service, Extensions(Choice), clock)
        daemon._learner.close()
        daemon._learner = Connection([])
        try:
            yield daemon
        finally:
            daemon._environments.close()
            daemon._metrics.close()


def publication(run: RunDirectory, version: int, action: int) -> Publication:
    """Parameters that always take one action."""
    algorithm: Any = make_algorithm(run.config().algorithm, run.facts().env)
    network = algorithm.network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.advantage[-1].bias[action] = 1.0
    data = parameters.encode(network)
    return Publication(
        version, 100 * version, 1000 * version, 10.0 * version, data, zlib.crc32(data)
    )


def rows(run: RunDirectory) -> list[dict[str, Any]]:
    lines = (run.metrics / "evaluator.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def kept(run: RunDirectory) -> list[tuple[str, float | None]]:
    """Every best checkpoint, with its mean return."""
    paths = checkpoint.all_paths(run.checkpoints, "best")
    return [(path.name, checkpoint.load(path).manifest.mean_return) for path in paths]


def test_x_values_are_those_of_the_parameters_that_played_though_newer_ones_came(run):
    played = publication(run, 3, GOOD)
    with evaluator_of(run) as daemon:
        daemon._learner = Connection([publication(run, v, BAD) for v in range(4, 20)])
        daemon.evaluate(played)
        assert daemon._learner.reports == [EvaluationReport(returns=(15.0,) * 4)]
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


def test_returns_are_of_whole_episodes_and_unclipped_whatever_is_learned_from(run):
    learned_from = run.config().env
    assert learned_from.clip_rewards and learned_from.life_loss_ends
    played = evaluation_env(learned_from)
    assert not played.life_loss_ends
    with evaluator_of(run) as daemon:
        for version, action in enumerate((BAD, GOOD), 1):
            daemon.evaluate(publication(run, version, action))
        assert [report.returns for report in daemon._learner.reports] == [(-9.0,) * 4, (15.0,) * 4]


def test_best_is_that_of_the_best_full_evaluation_also_after_a_restart(run):
    with evaluator_of(run) as daemon:
        daemon.evaluate(publication(run, 1, BAD))
        assert kept(run) == [("best_0000000100", -9.0)]
        answers = iter([True] * 6 + [False])  # one episode of each environment is over then
        daemon._proceed = lambda: next(answers)
        daemon.evaluate(publication(run, 2, GOOD))
        assert kept(run) == [("best_0000000100", -9.0)] and len(daemon._learner.reports) == 1
    with evaluator_of(run) as daemon:
        daemon.evaluate(publication(run, 3, GOOD))
        daemon.evaluate(publication(run, 4, BAD))
        assert kept(run) == [("best_0000000300", 15.0)]
    with evaluator_of(run) as daemon:
        daemon.evaluate(publication(run, 5, BAD))
        assert kept(run) == [("best_0000000300", 15.0)]
    best = [(row["param_version"], row["best_mean_return"]) for row in rows(run)]
    assert best == [(1, -9.0), (3, 15.0), (4, 15.0), (5, 15.0)]


class Clock:
    """Seconds that pass when the evaluator waits; after `end` of them it is asked to stop.

    At each wait the learner, when it was asked, has newer parameters.
    """

    def __init__(self, run: RunDirectory, end: float) -> None:
        self.now = 0.0
        self._run, self._end = run, end
        self.daemon: Any = None

    def __call__(self) -> float:
        return self.now

    def wait(self, seconds: float) -> None:
        self.now += 1.0
        if self.now >= self._end:
            self.daemon._service.stop()

    def ask(self) -> None:
        learned = publication(self._run, int(self.now) if self.now > 20 else 0, GOOD)
        self.daemon._learner._newer.append(learned)


def evaluated_at(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, cpu_s: float) -> list[float]:
    """When evaluations of `cpu_s` seconds of CPU begin; the learner's first step is at 21 s."""
    clock = Clock(run, 400.0)
    used = iter(range(1000))
    monkeypatch.setattr(evaluator.time, "process_time", lambda: cpu_s * next(used))
    with evaluator_of(run, clock) as daemon:
        clock.daemon = daemon
        daemon._learner.ask_for_params = clock.ask
        daemon._poller = clock
        began: list[float] = []
        evaluate = daemon.evaluate
        daemon.evaluate = lambda played: (began.append(clock.now), evaluate(played))
        daemon.run()
    return began


PACED = ("evaluator.period_s=50.0", "evaluator.max_share=0.1")


@pytest.mark.parametrize(
    ("cpu_s", "restarted", "expected"),
    [
        # 50 s after the first parameters that have learned, then every 50 s.
        (1.0, False, [72, 123, 174, 225, 276, 327, 378]),
        # 15 s of CPU are a tenth of two cores in 75 s.
        (15.0, False, [72, 148, 224, 300, 376]),
        (15.0, True, [22, 98, 174, 250, 326]),
    ],
)
def test_evaluations_wait_for_learning_for_their_period_and_for_their_share(
    tmp_path, monkeypatch, cpu_s, restarted, expected
):
    run = prepared(
        tmp_path, *PACED, "evaluator.episodes=4", "evaluator.num_envs=2", "algorithm.hidden=[]",
        make_env=Choice,
    )  # fmt: skip
    monkeypatch.setattr(evaluator.cpu_affinity, "of_run", lambda: 2)
    if restarted:
        with service_of(run, "evaluator") as service:
            service.mark_clean()
    assert evaluated_at(run, monkeypatch, cpu_s) == pytest.approx(expected, abs=2)


def test_the_best_is_kept_when_the_disk_takes_checkpoints_again(run, monkeypatch):
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with evaluator_of(run) as daemon:
        daemon.evaluate(publication(run, 1, BAD))
        with monkeypatch.context() as disk:
            disk.setattr(evaluator.checkpoint, "save_best", full)
            daemon.evaluate(publication(run, 2, GOOD))
        assert kept(run) == [("best_0000000100", -9.0)]
        daemon.evaluate(publication(run, 3, GOOD))
        assert kept(run) == [("best_0000000300", 15.0)]
    assert [row["best_mean_return"] for row in rows(run)] == [-9.0, 15.0, 15.0]


def test_evaluator_lowers_its_priority_before_it_makes_its_environments(run, monkeypatch):
    """Threads keep the priority of their start, the emulator's too."""
    happened: list[object] = []

    class Stand:
        def __init__(self, service: object, extensions: object) -> None:
            happened.append("made")

        def run(self) -> None:
            happened.append("run")

    monkeypatch.setattr(evaluator.os, "nice", happened.append)
    monkeypatch.setattr(evaluator, "EvaluatorDaemon", Stand)
    with service_of(run, "evaluator") as service:
        evaluator.body(service)
    assert happened == [15, "made", "run"]


class Falls(Choice):
    """The first environments raise at their fourth step."""

    made = 0

    def __init__(self) -> None:
        Falls.made += 1
        self.number = Falls.made
        self.all_steps = 0

    def step(self, action):
        self.all_steps += 1
        if self.number <= 2 and self.all_steps == 4:
            raise ValueError("the cart fell off the table")
        return super().step(action)


def test_an_evaluation_that_an_environment_ends_is_played_anew(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Falls, "made", 0)
    run = prepared(
        tmp_path, "evaluator.episodes=4", "evaluator.num_envs=2", "algorithm.hidden=[]",
        make_env=Falls,
    )  # fmt: skip
    monkeypatch.setattr(Falls, "made", 0)  # preparing makes one to look at
    now = 100.0
    with service_of(run, "evaluator") as service:
        daemon: Any = EvaluatorDaemon(service, Extensions(Falls), lambda: now)
        daemon._learner.close()
        daemon._learner = Connection([])
        daemon._poller = Still()
        daemon._try_to_evaluate(publication(run, 3, GOOD))
        assert daemon._recreation.faults == 1 and daemon._learner.reports == []
        assert "the cart fell off the table" in caplog.text
        daemon._recreate()
        assert daemon._recreation.due == 101.0, "a second later"
        now = 101.0
        daemon._recreate()
        assert daemon._recreation.due is None
        daemon._try_to_evaluate(daemon._unplayed)
        (report,) = daemon._learner.reports
        assert report.returns == (15.0,) * 4
        assert daemon._unplayed is None
        (line,) = (run.metrics / "evaluator.jsonl").read_text().splitlines()
        assert json.loads(line)["param_version"] == 3
        daemon._environments.close()
        daemon._metrics.close()


class Still:
    """A poller that waits for nothing."""

    def wait(self, timeout_s: float) -> bool:
        return False
