"""The trainer: publications, checkpoints, bad items, divergence, and the end of a run."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from apex.algos.registry import make_algorithm
from apex.daemons.learner.prefetcher import Batch
from apex.daemons.learner.snapshots import REPLAY_SNAPSHOT_S, Snapshots
from apex.daemons.learner.trainer import Trainer
from apex.errors import ConfigError, DivergedError
from apex.launch.prepare import resume_run
from apex.runs import checkpoint
from apex.runs.checkpoint import ActorRecord
from apex.runs.directory import RunDirectory
from tests.support.batches import batch_of
from tests.support.services import prepared

torch.set_num_threads(1)
CPU = torch.device("cpu")


class Counted:
    """Counts of other parts, and a record of priorities and rejected items."""

    env_steps = 4321
    best_return = 8.0

    def __init__(self) -> None:
        self.put: list[tuple[list[int], list[float]]] = []
        self.rejected: list[int] = []

    def counted(self) -> tuple[int, dict[str, ActorRecord], float]:
        record = ActorRecord(epoch=5, incarnation=0, slot=0, env_steps=4321)
        return self.env_steps, {"actor_000": record}, self.best_return

    def put_priorities(self, item_ids: np.ndarray, priorities: np.ndarray) -> None:
        self.put.append((item_ids.tolist(), priorities.tolist()))

    def reject(self, item_ids: Sequence[int]) -> None:
        self.rejected += item_ids


@pytest.fixture(params=[0, 1], ids=["lag 0", "lag 1"])
def lag(request: pytest.FixtureRequest) -> int:
    """Newer updates before an update's results are read: 0 on a CPU, 1 on a GPU."""
    return request.param


def trainer_of(run: RunDirectory, counted: Counted | None = None, **options: Any) -> Trainer:
    """A trainer after `begin`."""
    learner = make_algorithm(run.config().algorithm, run.facts().env).learner(CPU)
    trainer = Trainer(run, learner, **options)
    counted = counted or Counted()
    trainer.begin(counted, counted)
    return trainer


def make_batch(seed: int, **changes: Any) -> Batch:
    """Eight transitions of CartPole; `changes` sets one item's column to a value."""
    rng = np.random.default_rng(seed)
    arrays = {
        "observation": rng.normal(size=(8, 4)).astype(np.float32),
        "next_observation": rng.normal(size=(8, 4)).astype(np.float32),
        "action": rng.integers(0, 2, 8).astype(np.int32),
        "n_step_return": rng.normal(size=8).astype(np.float32),
        "discount": rng.choice([0.0, 0.97], 8).astype(np.float32),
        "probability": rng.uniform(0.001, 0.1, 8).astype(np.float32),
    }
    for column, value in changes.items():
        arrays[column][1] = value
    return Batch(np.arange(8), np.zeros(8, dtype=np.int64), batch_of(arrays), [])


def saved_state(run: RunDirectory) -> dict[str, Any]:
    """The learner's state in the newest checkpoint, with lists instead of tensors."""
    newest = checkpoint.newest(run.checkpoints)
    assert newest is not None
    return plain(newest.learner_state())


def plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, torch.Tensor) else state


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_second_start_restores_step_averages_target_random_state_and_counts(
    tmp_path: Path, optimizer: str, lag: int
) -> None:
    run = prepared(
        tmp_path, f"algorithm.optimizer={optimizer}", "algorithm.target_update_period=3",
        "algorithm.hidden=[]", "algorithm.stream_hidden=[4]", "learner.publish_period=2",
    )  # fmt: skip
    first = trainer_of(run, lag=lag)
    for number in range(5):
        first.update(make_batch(number))
    torch.rand(5)  # the generator's state differs from that of a fresh start
    assert first.save() is not None
    draws, saved, newest = torch.rand(3), saved_state(run), first.board.newest()
    first.update(make_batch(5))
    first.save()
    gone_on = saved_state(run)
    checkpoint.remove_from(run.checkpoints, "step", 6)
    modules = saved["learner"]["modules"]
    # Two updates after its last copy the target lags, and the averages have moved.
    assert modules["target"] != modules["online"]
    assert saved["learner"]["optimizations"]["online"]["optimizer"]["state"]

    second = trainer_of(run, lag=lag)
    assert torch.equal(torch.rand(3), draws)
    assert second.learner_step == 5 and second.resumed is not None
    assert (second.resumed.env_steps, second.resumed.best_return) == (4321, 8.0)
    assert second.resumed.actors["actor_000"].env_steps == 4321
    assert second.train_s > second.resumed.train_s > 0
    published = second.board.newest()
    assert published is not None and newest is not None
    assert (published.learner_step, published.env_steps) == (5, 4321)
    assert published.param_version > newest.param_version
    second.update(make_batch(5))
    second.save()
    assert saved_state(run)["learner"] == gone_on["learner"]


@pytest.mark.parametrize(("was", "now"), [("adam", "rmsprop"), ("rmsprop", "adam")])
def test_resume_with_another_optimizer_is_refused_by_name(
    tmp_path: Path, was: str, now: str
) -> None:
    run = prepared(tmp_path, f"algorithm.optimizer={was}")
    first = trainer_of(run)
    first.update(make_batch(0))
    first.save()
    config = run.config()
    other = {**config.algorithm, "optimizer": now}
    run.write_config(msgspec.structs.replace(config, algorithm=other))
    message = f"its optimizer is '{was}', but algorithm.optimizer is '{now}'"
    with pytest.raises(ConfigError, match=message):
        trainer_of(run)


def test_diverged_parameters_are_neither_published_nor_restored(tmp_path: Path, lag: int) -> None:
    # The first update's loss is finite; its parameters are about 1e30.
    run = prepared(tmp_path, "algorithm.learning_rate=1e30", "learner.publish_period=1")
    trainer = trainer_of(run, lag=lag)
    trainer.save()
    good, first = saved_state(run)["learner"], trainer.board.newest()
    trainer.update(make_batch(0))
    trainer.save()
    assert trainer.learner_step == 1 and trainer.board.newest() is first
    for number in range(1, 2 + lag):
        assert trainer.board.newest() is first
        trainer.update(make_batch(number))
    assert trainer.learner_step == 0 and trainer.rollbacks == 1
    published = trainer.board.newest()
    assert published is not None and published is not first and published.learner_step == 0
    paths = checkpoint.all_paths(run.checkpoints, "step")
    assert [path.name for path in paths] == ["step_0000000000"]
    trainer.save()
    assert saved_state(run)["learner"] == good
    for number in range(1 + lag):
        trainer.update(make_batch(number))
    with pytest.raises(DivergedError, match="step 1 is not finite, again"):
        trainer.update(make_batch(1 + lag))
    assert trainer.board.newest() is published


def test_snapshot_names_the_step_of_its_checkpoint_after_a_rollback(tmp_path: Path) -> None:
    run = prepared(tmp_path, "algorithm.learning_rate=1e30")
    trainer, replies = trainer_of(run, lag=1), []
    trainer.save()
    for number in range(2):
        trainer.update(make_batch(number))
    assert trainer.learner_step == 2, "the loss that is not finite has not been read"
    snapshots = Snapshots(trainer)
    server = SimpleNamespace(
        take_snapshot_requesters=list, reply_to_snapshot=lambda to, saved: replies.append(saved)
    )
    prefetcher = SimpleNamespace(snapshot=lambda number: None, saved=None)
    snapshots.take(server, prefetcher, now=0.0)
    snapshots.answer(server, prefetcher, now=REPLAY_SNAPSHOT_S)
    assert replies == [{"checkpoint": "step_0000000000", "learner_step": 0, "replay": None}]


def test_checkpoint_waits_for_the_results_of_all_updates(tmp_path: Path, lag: int) -> None:
    counted = Counted()
    trainer = trainer_of(prepared(tmp_path), counted, lag=lag)
    trainer.update(make_batch(0))
    trainer.update(make_batch(1))
    assert len(counted.put) == 2 - lag
    trainer.save()
    assert len(counted.put) == 2


@pytest.mark.parametrize("column", ["observation", "n_step_return"])
def test_item_with_an_absurd_value_is_dropped_and_training_continues(
    tmp_path: Path, column: str, lag: int
) -> None:
    """The value is finite, so the table accepts it; a priority of 1e30 is above its limit."""
    run, counted = prepared(tmp_path), Counted()
    trainer = trainer_of(run, counted, lag=lag)
    trainer.save()
    before = saved_state(run)["learner"]["modules"]["online"]
    trainer.update(make_batch(0, **{column: 3e38 if column == "observation" else 1e30}))
    if lag:
        trainer.update(make_batch(2))
    assert trainer.learner_step == 1 + lag and trainer.rollbacks == 0
    assert counted.rejected == [1]
    ((item_ids, priorities),) = counted.put
    assert item_ids == [0, 2, 3, 4, 5, 6, 7] and len(priorities) == 7
    trainer.update(make_batch(1))
    trainer.save()
    assert trainer.learner_step == 2 + lag and counted.rejected == [1]
    assert saved_state(run)["learner"]["modules"]["online"] != before


def test_failed_checkpoint_raises_an_alarm_until_one_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*rest: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    trainer = trainer_of(prepared(tmp_path))
    with monkeypatch.context() as disk:
        disk.setattr(checkpoint, "save", full)
        assert trainer.save() is None
    assert (
        trainer.alarm == "cannot write the checkpoint of step 0: [Errno 28] No space left on device"
    )
    assert trainer.save() is not None and trainer.alarm is None


@pytest.mark.parametrize(
    ("period", "lag", "steps"),
    [
        (1, 0, [0, 1, 2, 3, 4]),
        (1, 1, [0, 0, 1, 2, 3]),
        (2, 0, [0, 0, 2, 2, 4]),
        (2, 1, [0, 0, 0, 2, 2]),
    ],
)
def test_parameters_are_published_after_the_next_finite_loss(
    tmp_path: Path, period: int, lag: int, steps: list[int]
) -> None:
    trainer = trainer_of(prepared(tmp_path, f"learner.publish_period={period}"), lag=lag)
    for number, expected in enumerate(steps):
        trainer.update(make_batch(number))
        newest = trainer.board.newest()
        assert newest is not None and newest.learner_step == expected


def test_priorities_read_one_update_late_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    """One fixed stream of batches: the network is the same, too."""
    put, states = [], []
    for lag in (0, 1):
        folder = tmp_path / str(lag)
        folder.mkdir()
        counted, run = Counted(), prepared(folder, "algorithm.target_update_period=7")
        torch.manual_seed(1)
        trainer = trainer_of(run, counted, lag=lag)
        for number in range(50):
            trainer.update(make_batch(number))
        assert len(counted.put) == 50 - lag
        trainer.save()
        put.append(counted.put)
        states.append(saved_state(run)["learner"])
    assert put[0] == put[1] and len(put[0]) == 50
    assert states[0] == states[1]


def test_parameters_are_published_by_time_without_a_period_in_steps(tmp_path: Path) -> None:
    now = [0.0]
    run = prepared(tmp_path, "learner.publish_period=0", "learner.publish_period_s=0.25")
    trainer, seen = trainer_of(run, clock=lambda: now[0]), []
    for number in range(12):  # ten updates a second, at multiples of an eighth
        now[0] = number / 8
        trainer.update(make_batch(number))
        newest = trainer.board.newest()
        assert newest is not None
        seen.append(newest.learner_step)
    # The updates at 0.25, 0.5, ... s are published at the finite loss of the next one.
    assert seen == [0, 0, 0, 3, 3, 5, 5, 7, 7, 9, 9, 11]


def test_one_process_publishes_by_steps_when_the_configuration_does_by_time(tmp_path: Path) -> None:
    run = prepared(tmp_path, "learner.publish_period=0")
    trainer = trainer_of(run, publish_period=2, clock=lambda: 0.0)
    steps = []
    for number in range(5):
        trainer.update(make_batch(number))
        newest = trainer.board.newest()
        assert newest is not None
        steps.append(newest.learner_step)
    assert steps == [0, 0, 2, 2, 4]


def test_learning_rate_of_zero_is_logged_once_until_the_remedy_is_applied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = prepared(
        tmp_path, "algorithm.learning_rate_decay_steps=3",
        "algorithm.final_learning_rate_fraction=0.0",
    )  # fmt: skip
    trainer = trainer_of(run)
    for number in range(3):  # with the full rate, two thirds and one third of it
        trainer.update(make_batch(number))
        assert trainer.metrics["learning_rate"] > 0
    assert "learning rate" not in caplog.text
    trainer.save()
    learned = saved_state(run)["learner"]["modules"]["online"]
    for number in range(3, 6):
        trainer.update(make_batch(number))
    trainer.save()
    assert trainer.metrics["learning_rate"] == 0
    assert saved_state(run)["learner"]["modules"]["online"] == learned
    (said,) = [r.getMessage() for r in caplog.records if "learning rate" in r.getMessage()]
    assert "the learning rate is 0, nothing is learned" in said
    (remedy,) = re.findall(r"--set (algorithm\.\S+=[0-9.]+)", said)
    resume_run(run, [remedy])
    again = trainer_of(run)
    again.update(make_batch(7))
    again.save()
    assert again.metrics["learning_rate"] > 0
    assert saved_state(run)["learner"]["modules"]["online"] != learned


def test_run_ends_for_its_first_reason(tmp_path: Path, lag: int) -> None:
    now = [0.0]
    settings = ("run.max_env_steps=5000", "run.max_hours=1", "run.until_return=100")
    counted = Counted()
    run = prepared(tmp_path, *settings)
    trainer = trainer_of(run, counted, clock=lambda: now[0], lag=lag)
    trainer.update(make_batch(0))
    now[0] = 3599.0
    trainer.check_end()
    trainer.evaluated(99.9)
    assert trainer.outcome is None
    now[0] = 3600.0
    trainer.check_end()
    assert trainer.outcome == "1.00 hours (max_hours = 1)"
    counted.env_steps = 5000
    trainer.check_end()
    trainer.evaluated(100.0)
    assert trainer.outcome == "1.00 hours (max_hours = 1)"


@pytest.mark.parametrize(
    ("env_steps", "mean_return", "outcome"),
    [
        (5000, 0.0, "5000 env steps (max_env_steps = 5000)"),
        (4999, 100.0, "an evaluation reached 100.00 (until_return = 100)"),
    ],
)
def test_run_ends_by_steps_and_by_return(
    tmp_path: Path, env_steps: int, mean_return: float, outcome: str
) -> None:
    counted = Counted()
    run = prepared(tmp_path, "run.max_env_steps=5000", "run.until_return=100")
    trainer = trainer_of(run, counted)
    counted.env_steps = env_steps
    trainer.evaluated(mean_return)
    trainer.check_end()
    assert trainer.outcome == outcome
