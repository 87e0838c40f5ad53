"""Apex's replay server beside Reverb: inserts of raw frames, ready batches, both, and memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from apex.daemons.replay.client import InsertClient
from apex.data.chunks import Chunk
from apex.host import process_tuning
from apex.runs.directory import RunDirectory
from apex.wire.sockets import Poller
from benchmarks.peers.processes import Peer
from benchmarks.peers.recording import chunks_of, record, vector_steps
from benchmarks.run import cores
from benchmarks.run.daemons import Daemons, pong_run
from benchmarks.run.figures import Figure, figure, in_turn
from benchmarks.run.pong import CHUNK_LENGTH, NUM_ENVS, algorithm_of, fill, hello
from benchmarks.run.scenarios.learner_data import BATCH, batches
from benchmarks.run.workers import Step, Worker, together

ITEMS = 100_000
STEPS = 640
"""Recorded steps of each environment."""
SECONDS = 3.0
WAIT_S = 0.1
BACKLOG = 16
"""Chunks that a producer prepares before it waits for the server."""
INSERTING = {"in_flight": 64, "writers": NUM_ENVS}
SAMPLING = {"batch": BATCH, "in_flight": 64, "workers": 4}
"""Reverb's fastest settings, of those tried."""
Measurable = Worker | Peer


def inserting(path: Path, recording: Path) -> Step:
    """Step of an actor without environments that inserts at full speed; counts transitions."""
    process_tuning.set_up(1)
    run = RunDirectory(path)
    sent: deque[int] = deque()
    acknowledged = 0

    def on_acknowledged(seq: int, durable: bool) -> None:
        nonlocal acknowledged
        acknowledged += sent.popleft()

    client = InsertClient(
        run.endpoints().of("replay.insert"),
        hello(run, "actor", "actor_000"),
        on_acknowledged=on_acknowledged,
    )
    poller, steps, backlog = Poller(client.client), vector_steps(recording), deque[Chunk]()
    accumulator = algorithm_of(run).accumulator(NUM_ENVS, CHUNK_LENGTH)

    def step() -> float:
        before = acknowledged
        if len(backlog) < BACKLOG:
            backlog.extend(accumulator.add(next(steps)))
        else:
            poller.wait(WAIT_S)
        client.poll()
        while backlog and client.has_credit:
            sent.append(len(backlog[0]))
            client.insert(backlog.popleft())
        return acknowledged - before

    return step


def grown(pid: int, insert: Callable[[], object]) -> float:
    """Memory growth of a process, in MB."""
    before = cores.resident_bytes(pid)
    insert()
    return (cores.resident_bytes(pid) - before) / 1e6


def memory(
    run: RunDirectory, folder: Path, peer: dict[str, Any], our_pid: int, their_pid: int
) -> Figure:
    """Memory growth of both servers with `ITEMS` transitions."""
    chunks = chunks_of(run, folder, STEPS * NUM_ENVS)
    ours = grown(our_pid, lambda: fill(run, chunks, ITEMS))
    with Peer("reverb", "reverb_insert", cores.TRAINING, folder, **peer, **INSERTING) as inserts:

        def insert() -> None:
            inserted = 0.0
            while inserted < ITEMS:
                inserted += inserts.measure(1.0)

        theirs = grown(their_pid, insert)
    return figure("memory", f"MB for {ITEMS} transitions", [(ours, theirs)], "Reverb", bar=0.2,
                  lower_is_better=True)  # fmt: skip


def alone(case: str, ours: Measurable, theirs: Measurable, **extra: Any) -> Figure:
    """Measure inserts or samples alone."""
    pairs = in_turn(lambda: ours.measure(SECONDS), lambda: theirs.measure(SECONDS))
    return figure(case, "transitions/s", pairs, "Reverb", bar=3.0, **extra)


def at_once(ours: Sequence[Measurable], theirs: Sequence[Measurable]) -> list[Figure]:
    """Measure inserts and samples at once, by two clients that share a core."""
    pairs = in_turn(partial(together, ours, SECONDS), partial(together, theirs, SECONDS))
    return [
        figure(case, "transitions/s", [(value[k], limit[k]) for value, limit in pairs], "Reverb",
               bar=3.0)
        for k, case in enumerate(("inserts at once", "samples at once"))
    ]  # fmt: skip


def measure(folder: Path) -> Sequence[Figure]:
    """Measure all cases."""
    run = pong_run(folder / "run", ["replay.samples_per_insert=0", "replay.min_size=1000"])
    record(run, folder, STEPS)
    with (
        Daemons(run) as daemons,
        Peer("reverb", "reverb_server", cores.OTHERS, folder, capacity=ITEMS) as server,
    ):
        replay = daemons.replay(cores.OTHERS)
        daemons.asker("replay.sample")
        peer = {"port": server.ready["port"], "recording": str(folder)}
        shown = [memory(run, folder, peer, replay.pid, server.ready["pid"])]
        shown += speeds(run, folder, peer)
        daemons.check()
    return shown


def speeds(run: RunDirectory, folder: Path, peer: dict[str, Any]) -> list[Figure]:
    """Speeds of clients on one core, while the servers have the other."""
    theirs = partial(Peer, "reverb", kept_to=cores.TRAINING, folder=folder)
    sampling = {"port": peer["port"], **SAMPLING}
    with (
        Worker(inserting, cores.TRAINING, run.path, folder) as inserts,
        Worker(batches, cores.TRAINING, run.path, 1, True) as learner,
        Worker(batches, cores.TRAINING, run.path, 1) as samples,
        theirs(loop="reverb_insert", **peer, **INSERTING) as their_inserts,
        theirs(loop="reverb_sample", **sampling, returns_priorities=True) as their_learner,
        theirs(loop="reverb_sample", **sampling, returns_priorities=False) as their_samples,
    ):
        return [
            alone("inserts", inserts, their_inserts, reverb=INSERTING),
            alone("samples", samples, their_samples, reverb=SAMPLING),
            *at_once((inserts, learner), (their_inserts, their_learner)),
        ]
