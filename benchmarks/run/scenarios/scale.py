"""1 to 512 simulated actors with the same total insert rate: cost to replay and learner."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

from apex.daemons.learner.client import LearnerClient
from apex.daemons.replay.client import InsertClient
from apex.runs.directory import RunDirectory
from apex.wire.messages import Heartbeat
from apex.wire.sockets import Poller
from benchmarks.run import cores
from benchmarks.run.daemons import Daemons, pong_run, until
from benchmarks.run.figures import Figure, figure, in_turn
from benchmarks.run.pong import CHUNK_LENGTH, fill, hello, record
from benchmarks.run.scenarios.learner import learner_steps, settings
from benchmarks.run.workers import Step, Worker

COUNTS = (8, 64, 512)
INSERTS_PER_S = {"replay": 10_000, "learner": 2_000}
"""Transitions per second of all actors together; low enough to leave the learner its core."""
SECONDS = {"replay": 2.0, "learner": 4.0}
PASS_S = 0.02
CREDITS = 4


def simulating(path: Path, count: int, inserts_per_s: int, beating: bool) -> Step:
    """Step of simulated actors: inserts at a fixed rate, heartbeats; counts transitions."""
    run = RunDirectory(path)
    names = [f"actor_{k:03d}" for k in range(count)]
    greetings = [hello(run, "actor", name) for name in names]
    inserting = [InsertClient(run.endpoints().of("replay.insert"), one) for one in greetings]
    members = [
        LearnerClient(run.endpoints().of("learner.params"), one) for one in greetings if beating
    ]
    chunk, turns = record(run, CHUNK_LENGTH)[0], cycle(inserting)
    until(lambda: _all_greeted(inserting, members), "all clients have been greeted")
    poller, due = Poller(*(one.client for one in inserting)), time.monotonic()

    def step() -> float:
        nonlocal due
        due = max(due, time.monotonic() - 1.0)  # do not catch up on the time between measurements
        inserted = 0
        for client in islice(turns, count * CREDITS):
            if client.has_credit and due < time.monotonic():
                due += CHUNK_LENGTH / inserts_per_s
                client.insert(chunk)
                inserted += CHUNK_LENGTH
        for one in inserting:
            one.poll()
        for member in members:
            member.poll()
            member.heartbeat(lambda: Heartbeat(phase="stepping"))
        poller.wait(PASS_S)
        return inserted

    return step


def _all_greeted(inserting: list[InsertClient], members: list[LearnerClient]) -> bool:
    for client in (*inserting, *members):
        client.poll()
    return all(client.client.ready for client in (*inserting, *members))


def replay_cost(folder: Path, count: int) -> Figure:
    """CPU time of replay per transition, compared with a single actor."""
    run = pong_run(folder / f"replay_{count}", ["replay.samples_per_insert=0"])
    rate = INSERTS_PER_S["replay"]
    with Daemons(run) as daemons:
        server = daemons.replay(cores.OTHERS)
        daemons.asker("replay.sample")
        with (
            Worker(simulating, cores.TRAINING, run.path, count, rate, False) as many,
            Worker(simulating, cores.TRAINING, run.path, 1, rate, False) as one,
        ):

            def cost(actors: Worker) -> float:
                began = cores.cpu_seconds(server.pid)
                inserted = actors.measure(SECONDS["replay"]) * SECONDS["replay"]
                return (cores.cpu_seconds(server.pid) - began) / inserted * 1e6

            pairs = in_turn(lambda: cost(many), lambda: cost(one))
        daemons.check()
    return figure(f"replay, {count} actors", "us CPU a transition", pairs, "one such actor",
                  bar=1.2, lower_is_better=True)  # fmt: skip


def learner_cost(folder: Path, count: int) -> Figure:
    """Updates per second beside many actors, compared with one at the same insert rate."""
    run = pong_run(folder / "learner", [*settings(32), f"actor.count={count}"])
    rate = INSERTS_PER_S["learner"]
    with Daemons(run) as daemons:
        daemons.replay(cores.OTHERS)
        daemons.learner(cores.OTHERS, cores.TRAINING)
        asker = daemons.asker("learner.params")
        fill(run, record(run, 5_000), run.config().replay.min_size)
        until(lambda: learner_steps(asker.status()) > 2, "the learner trains")
        with (
            Worker(simulating, cores.OTHERS, run.path, count, rate, True) as many,
            Worker(simulating, cores.OTHERS, run.path, 1, rate, True) as one,
        ):

            def updates(actors: Worker) -> float:
                actors.begin(SECONDS["learner"])
                measured = asker.rate(learner_steps, SECONDS["learner"] - 1.0)
                actors.rate()
                return measured

            pairs = in_turn(lambda: updates(many), lambda: updates(one))
        daemons.check()
    return figure(f"learner, {count} actors", "updates/s", pairs, "beside one such actor",
                  bar=0.97)  # fmt: skip


def measure(folder: Path) -> Sequence[Figure]:
    """Measure all cases."""
    return [
        *(replay_cost(folder, count) for count in COUNTS),
        learner_cost(folder, COUNTS[-1]),
    ]
