"""Memory of the processes: bounded when the table is full and when a peer is stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np

from apex.acting.agent import Agent, LocalDecider
from apex.acting.decisions import Decision, Inputs
from apex.acting.loop import ActingLoop
from apex.algos.registry import make_algorithm
from apex.daemons.operator_client import ask
from apex.daemons.replay.client import InsertClient
from apex.daemons.status.reports import ReplayReport
from apex.data.chunk_bytes import chunk_to_arrays
from apex.data.chunks import Chunk
from apex.envs.registry import make_environments
from apex.launch.prepare import prepare_run, preset_config
from apex.runs.directory import RunDirectory
from apex.wire.sockets import Poller
from tests.support.builders import cartpole_chunk, hello_of
from tests.support.paths import ROOT
from tests.support.processes import memory_bytes, running
from tests.support.suite import Suite
from tests.support.waiting import wait_until

NUM_ENVS = 16
TRANSITIONS = 50_000


class RandomPolicy:
    """Policy with random actions and constant values."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(1)

    core_size = 0

    def act(self, inputs: Inputs, exploration: object) -> Decision:
        zeros = np.zeros(NUM_ENVS)
        actions = self._rng.integers(0, 6, NUM_ENVS)
        return Decision(actions, inputs.core_state, {"q_value": zeros, "max_q": zeros + 1.0})


def test_replay_server_needs_at_most_30_mb_for_50000_pong_transitions(suite: Suite) -> None:
    settings = ["replay.capacity=120000", f"actor.num_envs={NUM_ENVS}", "env.frame_size=[84,84]"]
    settings += ["replay.samples_per_insert=0"]
    run = prepare_run(suite.path, preset_config("pong", settings))
    with running([sys.executable, ROOT / "bin" / "replay", "--run", run.path]) as replay:
        client = InsertClient(run.endpoints().of("replay.insert"), hello_of(run))
        wait_until(lambda: client.poll() or client.client.ready, 60.0, "the server is there")
        before = memory_bytes(replay.pid)
        insert_transitions(run, client)
        grown = memory_bytes(replay.pid) - before
        client.close()
        assert 10e6 < grown <= 30e6, f"{grown / 1e6:.1f} MB for {TRANSITIONS} transitions"


def test_memory_is_bounded_when_64_producers_wait_for_a_stopped_replay_server(suite: Suite) -> None:
    settings = ["actor.chunk_length=32", "replay.samples_per_insert=0", "replay.capacity=200000",
                "replay.save_period_s=1"]  # fmt: skip
    run = prepare_run(suite.path, preset_config("cartpole", settings))
    replay = subprocess.Popen([sys.executable, ROOT / "bin" / "replay", "--run", run.path])
    clients = []
    try:
        address = run.endpoints().of("replay.insert")
        chunk = cartpole_chunk(32)
        assert sum(array.nbytes for array in chunk_to_arrays(chunk).values()) == 32 * 60
        clients = [InsertClient(address, hello_of(run))]
        wait_until(lambda: clients[0].poll() or clients[0].has_credit, 60.0, "the server is there")
        clients[0].insert(chunk)  # the first one loads modules
        wait_until(lambda: clients[0].poll() or not clients[0].unacknowledged, 60.0, "an insert")
        empty = memory_bytes(replay.pid)
        clients += [InsertClient(address, hello_of(run, f"actor_{k:03d}")) for k in range(1, 64)]
        poller = Poller(*(client.client for client in clients))
        turn = partial(insert_all, clients, poller, chunk)
        wait_until(lambda: turn() > 100_000, 60.0, "all insert", progress=turn)
        os.kill(replay.pid, signal.SIGSTOP)
        stopped_at, mine = turn(), memory_bytes(os.getpid())
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            sent = turn()
        assert sent - stopped_at <= 64 * 4 * 32
        assert {client.unacknowledged for client in clients} == {4}
        assert memory_bytes(os.getpid()) - mine < 5e6
        os.kill(replay.pid, signal.SIGCONT)
        wait_until(lambda: turn() > 400_000, 60.0, "the table is full and saved", progress=turn)
        # ARCHITECTURE's formula: column bytes + 8, 16 for the selector, 16 that saves leave, and
        # of 64 producers what is in flight and the connection.
        table = 200_000 * (52 + 8 + 16) + 262_144 * 16 + 64 * (4 * 32 * 60 + 150_000)

        def grown(since: int) -> int:
            turn()
            return memory_bytes(replay.pid) - since

        # A save that is under way holds 8 MB more for a moment.
        wait_until(lambda: grown(empty) < table, 60.0, "the formula holds")
        between_saves = min(grown(empty) for _ in range(500))
        assert between_saves > 0.3 * table
        wait_until(
            lambda: turn() > 800_000, 60.0, "the table is new more than twice over", progress=turn
        )
        wait_until(lambda: grown(empty) < between_saves + 4e6, 60.0, "and nothing grows")
    finally:
        for client in clients:
            client.close()
        replay.kill()
        replay.wait()


def insert_all(clients: list[InsertClient], poller: Poller, chunk: Chunk) -> int:
    """Insert with every producer up to its credit. Returns the number of items sent."""
    poller.wait(0.001)
    for client in clients:
        client.poll()
        while client.has_credit:
            client.insert(chunk)
    return sum(client.inserted_items for client in clients)


def test_memory_is_bounded_when_the_learner_is_stopped(
    suite: Suite, small: tuple[str, ...]
) -> None:
    suite.start(*small, "--set", "replay.capacity=3000",
                "--set", "replay.samples_per_insert=8")  # fmt: skip
    suite.wait_for(lambda s: s["replay"]["inserted"] > 4000, 90.0, "a table that is full")
    pids = {name: pid for name, pid in suite.run.living().items() if name != "learner"}
    learner = suite.run.pid("learner")
    assert learner is not None
    os.kill(learner, signal.SIGSTOP)
    try:
        wait_until(lambda: waiting(suite) == 8, 60.0, "two actors wait with four chunks each")
        before = {name: memory_bytes(pid) for name, pid in pids.items()}
        inserted = replay_status(suite).inserted
        deadline = time.monotonic() + 8.0
        while time.monotonic() < deadline:
            assert waiting(suite) == 8
            time.sleep(0.5)
        assert replay_status(suite).inserted == inserted
        grown = {name: memory_bytes(pid) - before[name] for name, pid in pids.items()}
        assert max(grown.values()) < 2e6, grown
    finally:
        os.kill(learner, signal.SIGCONT)
    suite.wait_for(
        lambda s: s["replay"]["inserted"] > inserted + 500 and s["run"]["health"] == "healthy",
        30.0,
        "all goes on",
    )


def replay_status(suite: Suite) -> ReplayReport:
    status = ask(suite.run, "replay.sample", ReplayReport)
    assert status is not None
    return status


def waiting(suite: Suite) -> int:
    return replay_status(suite).waiting_inserts


def insert_transitions(run: RunDirectory, client: InsertClient) -> None:
    config = run.config()
    algorithm = make_algorithm(config.algorithm, run.facts().env)
    accumulator = algorithm.accumulator(NUM_ENVS, config.actor.chunk_length)
    agent = Agent(algorithm.spec, NUM_ENVS, 0, accumulator=accumulator, clip_rewards=True)
    decider = LocalDecider(RandomPolicy(), agent)
    loop = ActingLoop(make_environments(config.env, NUM_ENVS), decider, seed=1)
    while client.inserted_items < TRANSITIONS:
        loop.step()
        for chunk in agent.take_chunks():
            wait_until(lambda: client.poll() or client.has_credit, 60.0, "credit")
            client.insert(chunk)
    wait_until(lambda: client.poll() or not client.unacknowledged, 60.0, "all acknowledged")
