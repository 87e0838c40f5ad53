"""Node.js actor of examples/clients/node, written from PROTOCOL.md alone, with real daemons."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from apex.daemons.operator_client import ask
from apex.daemons.replay.client import SampleClient
from apex.daemons.status.reports import ActorReport, LearnerAnswer, ReplayReport
from apex.data.chunks import Samples
from apex.launch.prepare import prepare_run, preset_config
from apex.runs.directory import RunDirectory
from apex.wire import curve_keys
from apex.wire.messages import Hello
from tests.support.node_client import NodeActor, installed
from tests.support.processes import DaemonProcess
from tests.support.waiting import wait_until

START_S = 120.0
"""Seconds for a learner to import torch on a busy machine."""
CHUNK, CREDITS = 8, 4
SETTINGS = (
    "learner.device=cpu", "actor.count=1", "actor.num_envs=2", f"actor.chunk_length={CHUNK}",
    "replay.min_size=64", "replay.capacity=20000", "learner.batch_size=32",
)  # fmt: skip
TENSORS = [
    "advantage.0.bias F32 [128]", "advantage.0.weight F32 [128,128]",
    "advantage.2.bias F32 [2]", "advantage.2.weight F32 [2,128]",
    "shared.0.bias F32 [128]", "shared.0.weight F32 [128,4]",
    "value.0.bias F32 [128]", "value.0.weight F32 [128,128]",
    "value.2.bias F32 [1]", "value.2.weight F32 [1,128]",
]  # fmt: skip
"""The dueling network of the preset: 4 numbers in, 128 hidden, 2 actions."""


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the client with its packages installed."""
    return installed(tmp_path_factory.mktemp("client") / "node")


class Daemons:
    """Replay server, learner and Node.js actors of a run without other actors."""

    def __init__(self, client: Path, run: RunDirectory) -> None:
        self.client, self.run = client, run
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, daemon: str) -> DaemonProcess:
        process = DaemonProcess(self.run.path, daemon, "--run", str(self.run.path))
        self._started.append(process.popen)
        return process

    def start_actor(self, *arguments: str) -> NodeActor:
        actor = NodeActor(self.client, self.run, "--index", "7", *arguments)
        self._started.append(actor.popen)
        return actor

    def wait(
        self, condition: Callable[[], object], actor: NodeActor, what: str, timeout_s: float = 30.0
    ) -> None:
        """Wait for a condition, and check that the actor is still running."""
        wait_until(lambda: condition() or actor.popen.poll() is not None, timeout_s, what)
        assert actor.popen.poll() is None, actor.output()

    def replay(self) -> ReplayReport:
        """The replay server's status."""
        return wait_until(  # type: ignore[no-any-return]
            lambda: ask(self.run, "replay.sample", ReplayReport), 60.0, "replay answers"
        )

    def learner(self) -> LearnerAnswer:
        """The learner's status, with its actors."""
        return wait_until(  # type: ignore[no-any-return]
            lambda: ask(self.run, "learner.params", LearnerAnswer), 60.0, "the learner answers"
        )

    def kill(self) -> None:
        for popen in self._started:
            popen.kill()
            popen.wait()


@pytest.fixture
def daemons(client: Path, tmp_path: Path) -> Iterator[Callable[..., Daemons]]:
    """Prepare a run and an object that starts its processes; kill them after the test."""
    prepared: list[Daemons] = []

    def prepare(*settings: str, endpoints: Path | None = None) -> Daemons:
        config = preset_config("cartpole", [*SETTINGS, *settings])
        run = prepare_run(tmp_path / "run", config, endpoints)
        prepared.append(Daemons(client, run))
        return prepared[-1]

    yield prepare
    for one in prepared:
        one.kill()


@pytest.fixture
def curve(tmp_path: Path) -> Path:
    """An endpoints file for TCP on loopback, with CURVE keys in `keys`."""
    curve_keys.make_folder(tmp_path / "keys")
    file = tmp_path / "endpoints.toml"
    address = '"tcp://127.0.0.1:*"'
    file.write_text(
        f'keys = "keys"\n[replay]\ninsert = {address}\nsample = {address}\n'
        f"[learner]\nparams = {address}\n"
    )
    return file


def sampled(run: RunDirectory, items: int) -> Samples:
    """Items sampled from the table by a second learner."""
    facts = run.facts()
    hello = Hello(
        role="learner", name="onlooker", epoch=time.time_ns(), run_id=facts.run_id,
        schema_hash=facts.schema.hash, pid=os.getpid(),
    )  # fmt: skip
    sampler = SampleClient(run.endpoints().of("replay.sample"), hello, items)

    def batch() -> Samples | None:
        batches = sampler.poll()
        if not batches and not sampler.in_flight:
            sampler.ask(1)
        return batches[0] if batches else None

    try:
        return wait_until(batch, 60.0, "a batch")  # type: ignore[no-any-return]
    finally:
        sampler.close()


def check_transition(item: dict[str, np.ndarray]) -> None:
    """Check an n-step transition against Gymnasium's CartPole, over all later actions."""
    rewards = {1.0: 1, 1.99: 2, 2.9701: 3}[round(float(item["n_step_return"]), 4)]
    cart = gymnasium.make("CartPole-v1").unwrapped
    reached = []
    for others in itertools.product((0, 1), repeat=rewards - 1):
        cart.reset()
        cart.state = tuple(map(float, item["observation"]))
        for action in (int(item["action"]), *others):
            observation, _, terminated, _, _ = cart.step(action)
        reached.append((np.abs(observation - item["next_observation"]).max(), terminated))
    distance, terminated = min(reached)
    assert distance < 1e-5
    assert float(item["discount"]) == pytest.approx(0.0 if terminated else 0.970299)
    assert terminated or rewards == 3
    assert int(item["learner_step"]) % 50 == 0, "a learner step that was published"


def test_learner_trains_on_items_of_a_node_actor(
    daemons: Callable[..., Daemons],
) -> None:
    suite = daemons("replay.samples_per_insert=1")
    suite.start("replay")
    suite.start("learner")
    actor = suite.start_actor()
    suite.wait(lambda: "parameters 0 " in actor.output(), actor, "parameters", START_S)
    batch = sampled(suite.run, 64)
    suite.wait(lambda: suite.replay().updated_priorities >= 32 * 100, actor, "100 updates")

    def member() -> ActorReport:
        [row] = suite.learner().actors
        assert (row.actor_id, row.slot, row.pid) == ("actor_007", 1, actor.popen.pid)
        return row

    at_work = ("stepping", "waiting_for_credit")
    suite.wait(lambda: member().state in at_work, actor, "its heartbeats come")
    assert suite.learner().learner.learner_step >= 100 and 9 <= member().mean_return <= 60
    ahead = member().env_steps - suite.replay().inserted
    assert ahead <= 2 * CREDITS * CHUNK, "it steps no further than its credit reaches"
    for k in range(len(batch)):
        check_transition({name: column[k] for name, column in batch.columns.items()})

    newer = re.compile(r"^actor_007: parameters [1-9]\d* of learner step [1-9]", re.MULTILINE)
    suite.wait(lambda: newer.search(actor.output()), actor, "newer parameters", START_S)
    actor.end()
    steps, inserted, acknowledged = actor.sums()
    after = suite.replay()
    assert 0 <= steps - inserted <= 2 * 2, "two environments, each with less than three steps left"
    assert inserted - CREDITS * CHUNK <= acknowledged <= after.inserted <= inserted
    assert after.producers == 1 and set(after.refused_by) <= {"reply_dropped"}
    printed = re.findall(r"^  (.+)$", actor.output(), re.MULTILINE)
    assert sorted(printed) == TENSORS
    wait_until(lambda: suite.learner().actors == (), 60.0, "it has taken leave")
    assert suite.learner().env_steps == steps


def test_node_actor_waits_for_credit_and_survives_a_killed_replay_server(
    daemons: Callable[..., Daemons], curve: Path
) -> None:
    suite = daemons("replay.samples_per_insert=8", endpoints=curve)

    def whole_window() -> bool:
        return suite.replay().waiting_inserts == CREDITS

    replay, learner = suite.start("replay"), suite.start("learner")
    actor = suite.start_actor("--steps", "2000")
    suite.wait(lambda: suite.replay().sampled, actor, "training", START_S)

    learner.popen.send_signal(signal.SIGSTOP)
    suite.wait(whole_window, actor, "it has inserted what it may")
    before = suite.replay()
    assert set(before.refused_by) <= {"reply_dropped"} and before.inserted < 1_900

    replay.popen.kill()
    replay.popen.wait()
    replay = suite.start("replay")
    suite.wait(whole_window, actor, "it has said hello and sent again what was unacknowledged")
    again = suite.replay()
    assert again.pid != before.pid and again.items >= before.inserted

    learner.popen.send_signal(signal.SIGCONT)
    actor.finish(60.0)
    steps, inserted, acknowledged = actor.sums()
    assert steps == 2_000 and 0 <= steps - inserted <= 2 * 2
    wait_until(lambda: suite.replay().items == inserted, 60.0, "each item is there, once")
    assert inserted - CREDITS * CHUNK <= acknowledged <= inserted


def test_node_actor_reports_user_errors_in_one_line(
    daemons: Callable[..., Daemons], curve: Path, tmp_path: Path
) -> None:
    suite = daemons(endpoints=curve)
    folder = str(suite.run.path)

    def refused(where: Path, *arguments: str) -> tuple[int, str]:
        done = subprocess.run(
            ["node", str(where / "actor.js"), *arguments],
            capture_output=True, text=True, timeout=150,
        )  # fmt: skip
        [line] = done.stderr.splitlines()
        return done.returncode, line

    code, line = refused(suite.client, "--run", folder, "--index", "x")
    assert code == 2 and "usage: node actor.js --run DIR --index N" in line
    code, line = refused(suite.client, "--run", str(tmp_path / "none"), "--index", "7")
    assert code == 78 and f"{tmp_path}/none/endpoints.toml: there is no such file" in line

    suite.start("replay").wait_for_text("serving")
    older = tmp_path / "older"
    shutil.copytree(suite.client, older, symlinks=True)
    wire = older / "wire.js"
    wire.write_text(re.sub(r"PROTOCOL_VERSION = \d+", "PROTOCOL_VERSION = 1", wire.read_text()))
    code, line = refused(older, "--run", folder, "--index", "7")
    assert code == 78 and "protocol" in line and "this actor 1" in line
    curve_keys.make_folder(tmp_path / "strange")
    shutil.copy(tmp_path / "strange" / "actor.secret", tmp_path / "keys" / "actor.secret")
    code, line = refused(suite.client, "--run", folder, "--index", "7")
    assert code == 78 and "does not let this user or key in" in line

    facts = json.loads(suite.run.schema_file.read_text())
    facts["env"]["num_actions"] = 3
    suite.run.schema_file.write_text(json.dumps(facts))
    code, line = refused(suite.client, "--run", folder, "--index", "7")
    assert code == 78 and "the run has CartPole-v1 (observations [4], 3 actions)" in line
