"""Environments in processes of their own: a slow, hung or dead one stops no other."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import psutil
import pytest

from apex.acting.agent import Agent
from apex.acting.decisions import Decision, Inputs
from apex.acting.lanes import LaneLoop, Lanes
from apex.config import loading
from apex.config.sections import EnvConfig
from apex.data.observations import to_columns
from apex.envs.async_environments import AsyncEnvironments
from apex.envs.env_pipe import Begun, Pipe, Reset, Setup, Stepped, observation_of
from apex.envs.registry import make_environments
from apex.envs.spec import EnvSpec
from apex.errors import ConfigError
from apex.host.orphans import MARK
from apex.launch.pickled_extensions import pickle_extensions
from apex.plugins import Extensions
from tests.support.clock import Clock
from tests.support.lane_environments import Lane
from tests.support.paths import ROOT
from tests.support.waiting import wait_until

ID = f"{ROOT}/tests/support/lane_environments.py:Lane"
PATIENCE_S = 60.0


class Recorder:
    """An accumulator that records the steps of one environment."""

    def __init__(self) -> None:
        self.steps: list[Any] = []

    def add(self, step: Any) -> list[Any]:
        self.steps.append(step)
        return []

    def flush(self) -> list[Any]:
        return []


class Zeros:
    """Takes the action 0, and records how many environments it decided for."""

    core_size = 0

    def __init__(self) -> None:
        self.batches: list[int] = []

    def act(self, inputs: Inputs, exploration: object) -> Decision:
        self.batches.append(len(inputs.core_state))
        return Decision(np.zeros(len(inputs.core_state), np.int64), inputs.core_state, {})


def spec_of(config: EnvConfig) -> EnvSpec:
    environments = make_environments(config, 1)
    environments.close()
    return environments.spec


@contextmanager
def lanes(
    num_envs: int, timeout_s: float = PATIENCE_S, **kwargs: int
) -> Iterator[tuple[AsyncEnvironments, LaneLoop, list[Recorder]]]:
    """Environments with the seeds 10, 11, …, and 110, 111, … after a fault of their own."""
    config = EnvConfig(id=ID, kwargs=kwargs)
    environments = AsyncEnvironments(config, num_envs, spec_of(config), timeout_s)
    recorders = [Recorder() for _ in range(num_envs)]
    agents = [
        Agent(environments.spec, 1, 0, clip_rewards=False, accumulator=recorder)
        for recorder in recorders
    ]
    loop = LaneLoop(environments, Lanes(Zeros(), agents, 0, lambda chunks: None), wait_s=0.05)
    try:
        environments.start(lambda faults: 100 * faults + 10)
        yield environments, loop, recorders
    finally:
        environments.close()


def turn(loop: LaneLoop, until: Callable[[], bool]) -> list[Any]:
    """Step the loop until a condition holds; return the finished episodes."""
    finished: list[Any] = []

    def look() -> bool:
        finished.extend(loop.step())
        return until()

    wait_until(look, PATIENCE_S, "the environments", pause_s=0.0)
    return finished


def test_slow_hung_and_dead_environments_stop_no_other(caplog):
    """Seeds 10 and 11 are healthy, 12 hangs and 13 dies; made again, all are healthy."""
    with lanes(4, timeout_s=3.0, hangs=12, dies=13) as (environments, loop, recorders):
        steps = [recorder.steps for recorder in recorders]
        finished = turn(loop, lambda: environments.faults == 2 and min(map(len, steps)) >= 20)
        assert len(steps[0]) > len(steps[2]) and len(steps[1]) > len(steps[2])
        before_and_after = {
            lane: [float(step.observations[0, 1]) for step in steps[lane]] for lane in (2, 3)
        }
    for lane, seeds in before_and_after.items():
        first, later = seeds[:3], set(seeds[3:])
        assert first == [10.0 + lane] * 3, "two steps, and the one that has no result"
        assert later == {110.0 + lane}
        cut = steps[lane][2]
        assert cut.truncated[0] or cut.ignored[0], "its episode is cut where it failed"
    assert all(episode.episode_return == 5.0 for episode in finished)
    assert {episode.env for episode in finished} == {0, 1, 2, 3}
    assert finished[0].metrics == {"success": 1.0}
    text = caplog.text
    assert "environment 2: step took more than 3 s (actor.env_timeout_s); killed it" in text
    assert "environment 3: its process ended (exit code 3); recreating it in 1 s" in text


def test_environment_that_sleeps_holds_up_neither_the_others_nor_the_end():
    with lanes(2, sleeps=10) as (environments, loop, recorders):
        turn(loop, lambda: len(recorders[1].steps) >= 60)
        assert recorders[0].steps == [] and environments.faults == 0
        assert loop.env_steps == 50, "every sixth step begins an episode"
        assert loop.episodes == 10 and list(loop.recent_returns) == [5.0] * 10
        pids = environments.pids()
        begun = time.monotonic()
    assert time.monotonic() - begun < 30.0
    assert not any(psutil.pid_exists(pid) for pid in pids if pid is not None)


def test_error_of_an_environment_is_reported_with_its_line(caplog):
    with lanes(1, raises=10) as (environments, loop, recorders):
        turn(loop, lambda: environments.faults == 1)
        assert environments.working == 0
        turn(loop, lambda: len(recorders[0].steps) > 5)
    assert re.search(
        r"environment 0: .*lane_environments\.py:Lane: step 3 raised ValueError: the simulator has "
        r"crashed \(lane_environments\.py, line \d+, in step\)", caplog.text,
    )  # fmt: skip


def test_script_factory_reaches_the_processes():
    extensions = pickle_extensions(Extensions(make_env=lambda: Lane()))
    config = EnvConfig(id="factory:lane")
    spec = make_environments(config, 1, Lane).spec
    environments = AsyncEnvironments(config, 1, spec, PATIENCE_S, extensions=extensions)
    try:
        environments.start(lambda faults: 7)
        found: list[Any] = []
        wait_until(lambda: bool(found.extend(environments.answers(0.05)) or found), PATIENCE_S,
                   "an observation")  # fmt: skip
        assert found[0].begun.tolist() == [[0.0, 7.0]]
    finally:
        environments.close()


SCRIPT = """
import sys, time
from apex.config.sections import EnvConfig
from apex.envs.async_environments import AsyncEnvironments
from apex.envs.registry import make_environments
config = EnvConfig(id=sys.argv[1], kwargs={"hangs": 0})
environments = AsyncEnvironments(config, 2, make_environments(config, 1).spec, 60.0)
environments.start(lambda faults: 0)
begun = 0
while begun < 2:
    begun += len(environments.answers(0.1))
import numpy as np
environments.send([0, 1], np.zeros(2, int))
print(*environments.pids(), flush=True)
time.sleep(600)
"""


def test_no_process_outlives_an_actor_that_is_killed():
    actor = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, ID], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert actor.stdout is not None
    try:
        pids = [int(word) for word in actor.stdout.readline().split()]
        assert len(pids) == 2 and all(psutil.pid_exists(pid) for pid in pids)
    finally:
        os.kill(actor.pid, signal.SIGKILL)
        actor.wait()
        actor.stdout.close()
    wait_until(lambda: not any(_lives(pid) for pid in pids), PATIENCE_S, "the processes to end")


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_time_in_which_the_actor_did_not_look_is_not_the_environments():
    clock = Clock()
    config = EnvConfig(id=ID)
    environments = AsyncEnvironments(config, 1, spec_of(config), 10.0, clock=clock)
    environments.start(lambda faults: 0)
    try:
        os.kill(environments.pids()[0], signal.SIGSTOP)
        for _ in range(9):
            clock.move(100.0)  # the actor was stopped, or waited for credit
            assert environments.answers(0.0) == []
        clock.move(1.5)
        assert environments.answers(0.0) == [], "nine seconds count, and one more"
        clock.move(0.5)
        assert len(environments.answers(0.0)) == 1
        assert environments.faults == 1 and environments.working == 0
    finally:
        environments.close()


def test_masked_action_is_the_algorithms_fault_too():
    config = EnvConfig(id=f"{ROOT}/examples/lanes.py:Lanes")
    environments = AsyncEnvironments(config, 1, spec_of(config), PATIENCE_S)
    agent = Agent(environments.spec, 1, 0, clip_rewards=False)
    loop = LaneLoop(environments, Lanes(Zeros(), [agent], 0, lambda chunks: None), wait_s=0.05)
    try:
        environments.start(lambda faults: 1)
        with pytest.raises(ConfigError, match=r"chose the action 0 .* the action mask allows only"):
            wait_until(lambda: loop.step() and loop.episodes > 100, PATIENCE_S)
        assert environments.faults == 0
    finally:
        environments.close()


def test_invalid_action_is_the_algorithms_fault():
    config = EnvConfig(id=ID)
    environments = AsyncEnvironments(config, 2, spec_of(config), 10.0)
    with pytest.raises(ConfigError, match=r"the algorithm chose the action 2, but .* 0 to 1"):
        environments.send([0, 1], np.array([1, 2]))
    environments.close()


@pytest.mark.parametrize(
    "observation",
    [
        np.arange(6, dtype=np.uint8).reshape(1, 2, 3),
        {"image": np.ones((1, 2, 2), np.uint8), "robot.arm": np.zeros((1, 3), np.float32)},
    ],
)
def test_observations_of_one_or_several_arrays_pass_the_pipe(observation):
    ours, theirs = (Pipe(end) for end in socket.socketpair())
    theirs.send(Reset(seed=2**31))
    theirs.send(Begun(), to_columns(observation))
    result = {"reward": 0.5, "terminated": True, "truncated": False, "life_lost": False}
    theirs.send(Stepped(**result, metrics={"success": 1.0}))
    theirs.close()
    assert ours.receive() == (Reset(seed=2**31), {})
    message, arrays = ours.receive() or (None, {})
    assert isinstance(message, Begun)
    found = observation_of(arrays)
    np.testing.assert_equal(found, observation)
    stepped, _ = ours.receive() or (None, {})
    assert stepped == Stepped(**result, metrics={"success": 1.0})
    with pytest.raises(EOFError):
        ours.receive()
    ours.close()


def test_message_that_arrives_in_parts_is_read_once_it_is_complete():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    pipe = Pipe(ours)
    sent, received = socket.socketpair()
    Pipe(sent).send(Begun(), {"observation": np.arange(100, dtype=np.float64)})
    sent.close()
    whole = received.recv(10_000)
    received.close()
    for position in range(0, len(whole) - 1, 300):
        theirs.sendall(whole[position : min(position + 300, len(whole) - 1)])
        assert pipe.receive() is None
    theirs.sendall(whole[-1:])
    message, arrays = pipe.receive() or (None, {})
    assert isinstance(message, Begun) and arrays["observation"].sum() == 4950.0
    theirs.close()
    pipe.close()


def test_central_inference_refuses_asynchronous_environments():
    settings = ["env.id=CartPole-v1", "actor.async_envs=true", "actor.inference=central"]
    table = loading.apply_overlay(loading.read_table(settings=settings), gpu=False)
    with pytest.raises(ConfigError, match=r'^actor\.async_envs needs actor\.inference = "local"'):
        loading.parse(table)


def test_message_larger_than_the_buffer_of_a_socket_that_does_not_block_arrives_whole() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        sender, receiver = Pipe(ours), Pipe(theirs)
        extensions = bytes(range(256)) * 16_384
        sender.send(Setup(env=EnvConfig(id="own"), extensions=extensions))
        received = receiver.receive()
        assert received is None
        while received is None:
            sender.flush()
            received = receiver.receive()
    assert received[0] == Setup(env=EnvConfig(id="own"), extensions=extensions)


def test_what_an_environment_starts_is_marked_as_its_process_s_own() -> None:
    code = (
        "import os; from apex.host.orphans import MARK, mark_own_children; mark_own_children(); "
        "print(os.getpid(), os.environ.get(MARK))"
    )
    for mark, expected in (("7 8 /a run", r"(\d+) \1 \d+ /a run"), ("", r"\d+ ")):
        environ = {**os.environ, MARK: mark}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, cwd=ROOT, capture_output=True, text=True
        )
        assert re.fullmatch(expected, done.stdout.removesuffix("\n")), done
