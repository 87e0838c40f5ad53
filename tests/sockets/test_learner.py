"""The learner in one process: actors that come late, and what a second start goes on with."""

from __future__ import annotations

import errno
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import msgspec
import numpy as np
import pytest
import torch

from apex.algos.registry import make_algorithm
from apex.daemons.learner.client import LearnerClient
from apex.daemons.learner.daemon import LearnerDaemon
from apex.daemons.learner.parameter_server import ParamsServer
from apex.daemons.learner.parameter_versions import Publication, PublicationBoard
from apex.daemons.learner.prefetcher import Batch
from apex.daemons.status import alarms
from apex.errors import ConfigError, DivergedError
from apex.runs import checkpoint
from apex.runs.directory import RunDirectory, RunFacts
from apex.wire.endpoints import Endpoints, LearnerEndpoints, ReplayEndpoints
from apex.wire.messages import EvaluationReport, Heartbeat
from apex.wire.sockets import Poller
from tests.support.builders import VECTOR_SCHEMA, env_spec, hello, wait_until
from tests.support.services import prepared, service_of

torch.set_num_threads(1)


def publication(version: int) -> Publication:
    data = b"parameters %d" % version
    return Publication(version, 10 * version, 100 * version, 0.5, data, zlib.crc32(data))


def test_actors_that_come_late_get_the_newest_parameters_at_once_however_many(tmp_path):
    endpoints = Endpoints(
        ReplayEndpoints(f"ipc://{tmp_path}/i", f"ipc://{tmp_path}/s"),
        LearnerEndpoints(f"ipc://{tmp_path}/p"),
    )
    board = PublicationBoard()
    board.put(publication(40))
    board.put(publication(41))
    server = ParamsServer(
        endpoints, RunFacts("run", env_spec((3,), "float32"), VECTOR_SCHEMA), 1, 0, {}, board,
        status=dict, on_evaluation=lambda mean: None, on_shutdown=lambda: None,
        on_snapshot=lambda: None,
    )  # fmt: skip
    with ExitStack() as stack:
        stack.enter_context(closing(server))
        server.start()
        # One is configured; the learner publishes nothing while they come.
        for number in range(3):
            client = LearnerClient(endpoints.of("learner.params"), hello(f"actor_{number:03d}"))
            stack.enter_context(closing(client))
            received: list[Publication] = []

            def turn(client=client, received=received) -> None:
                Poller(client.client).wait(0.01)
                received += [found for found in [client.poll()] if found]
                client.ask_for_params()

            wait_until(lambda received=received: received, turn)
            assert received == [publication(41)] and client.welcome.slot == number
        board.put(publication(42))
        wait_until(lambda: len(received) == 2, turn)
        assert received[1] == publication(42)


@contextmanager
def learner_of(run: RunDirectory) -> Iterator[LearnerDaemon]:
    with service_of(run, "learner") as service:
        facts = service.facts
        learner = LearnerDaemon(service, make_algorithm(service.config.algorithm, facts.env))
        try:
            yield learner
        finally:
            learner._close(orderly=False)


def make_batch(seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    arrays = {
        "observation": rng.normal(size=(8, 4)).astype(np.float32),
        "next_observation": rng.normal(size=(8, 4)).astype(np.float32),
        "action": rng.integers(0, 2, 8).astype(np.int32),
        "n_step_return": rng.normal(size=8).astype(np.float32),
        "discount": rng.choice([0.0, 0.97], 8).astype(np.float32),
        "probability": rng.uniform(0.001, 0.1, 8).astype(np.float32),
    }
    return Batch(np.arange(8), np.zeros(8, dtype=np.int64), arrays, [])


def plain(state: Any) -> Any:
    """Nested state with lists instead of tensors, so that == compares it."""
    if isinstance(state, dict):
        return {key: plain(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, torch.Tensor) else state


@pytest.mark.parametrize("optimizer", ["rmsprop", "adam"])
def test_second_start_goes_on_with_step_env_steps_averages_target_and_best_score(
    tmp_path, optimizer
):
    run = prepared(
        tmp_path, f"algorithm.optimizer={optimizer}", "algorithm.target_update_period=3",
        "algorithm.hidden=[]", "algorithm.stream_hidden=[4]", "learner.publish_period=2",
    )  # fmt: skip
    report = EvaluationReport(
        param_version=0, learner_step=0, env_steps=0, train_s=0.0, returns=(7.0, 9.0)
    )
    with learner_of(run) as first:
        book = first._server.membership
        book.greet(hello("actor_000", epoch=5))
        book.heartbeat(
            hello("actor_000", epoch=5), Heartbeat(phase="stepping", progress=1, env_steps=4321)
        )
        book.evaluation(report)
        for number in range(5):
            first._update(make_batch(number))
        torch.rand(5)  # the generator is no longer where a start puts it
        first._save()
        draws = torch.rand(3)
        saved = plain(first._learner.state_dict())
        first._update(make_batch(5))
        gone_on = plain(first._learner.state_dict())
        newest = first._board.newest()
    # Two updates after its copy the target lags, and the averages are not at their start.
    assert saved["target"] != saved["online"] and saved["optimizer"]["state"]

    with learner_of(run) as second:
        assert torch.equal(torch.rand(3), draws)
        assert plain(second._learner.state_dict()) == saved
        assert second.status()["learner_step"] == 5
        env_steps, records, best_return = second._server.counted()
        assert (env_steps, best_return) == (4321, 8.0)
        assert records["actor_000"].env_steps == 4321
        manifest = checkpoint.newest(run.checkpoints).manifest
        assert second.train_s > manifest.train_s > 0
        second._publish()
        published = second._board.newest()
        assert (published.learner_step, published.env_steps) == (5, 4321)
        assert published.param_version > newest.param_version
        second._update(make_batch(5))
        assert plain(second._learner.state_dict()) == gone_on


@pytest.mark.parametrize(("was", "now"), [("adam", "rmsprop"), ("rmsprop", "adam")])
def test_resume_with_another_optimizer_is_refused_by_name(tmp_path, was, now):
    run = prepared(tmp_path, f"algorithm.optimizer={was}")
    with learner_of(run) as first:
        first._update(make_batch(0))
        first._save()
    config = run.config()
    other = {**config.algorithm, "optimizer": now}
    run.write_config(msgspec.structs.replace(config, algorithm=other))
    message = f"trained with the optimizer '{was}', algorithm.optimizer is '{now}'"
    with pytest.raises(ConfigError, match=message), learner_of(run):
        pass


def test_parameters_that_blew_up_are_not_published_and_not_gone_back_to(tmp_path):
    # The first update's loss is finite; the parameters that it makes are about 1e30.
    run = prepared(tmp_path, "algorithm.learning_rate=1e30", "learner.publish_period=1")
    with learner_of(run) as learner:
        learner._save()
        good = [p.clone() for p in learner._learner.network.parameters()]
        learner._update(make_batch(0))
        learner._save()
        assert learner._board.newest() is None
        learner._update(make_batch(1))
        assert learner._step == 0
        assert all(map(torch.equal, learner._learner.network.parameters(), good))
        published = learner._board.newest()
        assert published is not None and published.learner_step == 0
        assert [p.name for p in checkpoint.all_paths(learner._folder, "step")] == [
            "step_0000000000"
        ]
        learner._update(make_batch(0))
        with pytest.raises(DivergedError, match="step 1 is not finite, again"):
            learner._update(make_batch(1))


@pytest.mark.parametrize("value", [3e38, 1e30])
def test_an_item_with_an_absurd_value_is_left_out_and_training_goes_on(tmp_path, value, caplog):
    """Finite all the same, so the table takes it; 1e30 is above every priority that it takes."""
    run = prepared(tmp_path)
    with learner_of(run) as learner:
        learner._save()
        bad = make_batch(0)
        column = "observation" if value == 3e38 else "n_step_return"
        bad.arrays[column][1] = value
        before = [p.clone() for p in learner._learner.network.parameters()]
        learner._update(bad)
        assert learner._step == 1 and learner._rollbacks == 0
        assert learner._prefetcher.corrupt_items == 1
        rejected, kept = learner._prefetcher._priorities
        assert rejected[0].tolist() == [bad.item_ids[1]] and rejected[1].tolist() == [0.0]
        assert bad.item_ids[1] not in kept[0] and len(kept[0]) == len(bad.item_ids) - 1
        learner._update(make_batch(1))
        assert learner._step == 2
        assert not all(map(torch.equal, learner._learner.network.parameters(), before))


def test_a_checkpoint_that_the_disk_does_not_take_is_an_alarm_until_one_is_taken(
    tmp_path, monkeypatch
):
    def full(*rest: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    replay = {"alarm": None}
    with learner_of(prepared(tmp_path)) as learner:
        with monkeypatch.context() as disk:
            disk.setattr(checkpoint, "save", full)
            assert learner._save() is None
        (alarm,) = alarms({"learner": learner.status(), "replay": replay})
        assert alarm == (
            "the newest training is not saved: no checkpoint at step 0: "
            "[Errno 28] No space left on device"
        )
        assert learner._save() is not None
        assert alarms({"learner": learner.status(), "replay": replay}) == []


def test_parameters_are_published_when_the_next_loss_shows_them_to_be_finite(tmp_path):
    run = prepared(tmp_path, "learner.publish_period=2")
    with learner_of(run) as learner:
        for number, expected in enumerate([None, None, 2, 2, 4]):
            learner._update(make_batch(number))
            newest = learner._board.newest()
            assert (newest.learner_step if newest else None) == expected
