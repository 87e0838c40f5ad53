"""The replay process's memory, filled over the wire with real Pong frames."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from apex.acting.loop import ActingLoop, Decision
from apex.algos.registry import make_algorithm
from apex.envs.registry import make_environments
from apex.prepare import prepare_run, preset_config
from apex.replay.client import InsertClient
from apex.run_directory import RunDirectory
from apex.wire.messages import Hello
from tests.conftest import ROOT, Suite, wait_until

NUM_ENVS = 16
TRANSITIONS = 100_000


class RandomPolicy:
    """Acts at random; its values are all zero."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(1)

    def initial_state(self, num_envs: int) -> None:
        return None

    def act(self, observations: object, state: object, exploration: object) -> Decision:
        zeros = np.zeros(NUM_ENVS)
        actions = self._rng.integers(0, 6, NUM_ENVS)
        return Decision(actions, None, {"q_value": zeros, "max_q": zeros + 1.0})


def test_100000_pong_transitions_cost_the_replay_process_at_most_60_mb(suite: Suite) -> None:
    settings = ["replay.capacity=120000", f"actor.num_envs={NUM_ENVS}", "env.frame_size=[84,84]"]
    settings += ["replay.samples_per_insert=0"]
    run = prepare_run(suite.path, preset_config("pong", settings))
    replay = subprocess.Popen([sys.executable, ROOT / "bin" / "replay", "--run", run.path])
    try:
        client = InsertClient(run.endpoints().of("replay.insert"), hello(run))
        wait_until(lambda: client.poll() or client.client.ready, 30.0, "the server is there")
        before = resident_bytes(replay.pid)
        insert_transitions(run, client)
        grown = resident_bytes(replay.pid) - before
        client.close()
        assert 10e6 < grown <= 60e6, f"{grown / 1e6:.1f} MB for {TRANSITIONS} transitions"
    finally:
        replay.kill()
        replay.wait()


def hello(run: RunDirectory) -> Hello:
    facts = run.facts()
    return Hello(
        role="actor",
        name="actor_000",
        epoch=1,
        run_id=facts.run_id,
        schema_hash=facts.schema.hash,
        pid=os.getpid(),
    )


def insert_transitions(run: RunDirectory, client: InsertClient) -> None:
    config = run.config()
    algorithm = make_algorithm(config.algorithm, run.facts().env)
    loop = ActingLoop(
        make_environments(config.env, NUM_ENVS),
        RandomPolicy(),
        None,
        algorithm.accumulator(NUM_ENVS, config.actor.chunk_length),
        clip_rewards=True,
        seed=1,
    )
    while client.inserted_items < TRANSITIONS:
        for chunk in loop.step()[0]:
            wait_until(lambda: client.poll() or client.has_credit, 30.0, "credit")
            client.insert(chunk)
    wait_until(lambda: client.poll() or not client.unacknowledged, 30.0, "all acknowledged")


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
