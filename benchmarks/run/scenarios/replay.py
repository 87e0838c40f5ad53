"""The replay server alone: inserts, samples, both at once, and memory, compared with ZeroMQ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from apex.daemons.replay.client import InsertClient, SampleClient
from apex.data.chunk_bytes import chunk_to_arrays, samples_to_arrays
from apex.data.chunks import Chunk
from apex.runs.directory import RunDirectory
from apex.wire.codec import encode
from apex.wire.messages import Insert, SampleReply
from apex.wire.sockets import Poller
from benchmarks.run import cores
from benchmarks.run.daemons import Daemon, Daemons, pong_run
from benchmarks.run.exchange import Answerer, exchanging
from benchmarks.run.figures import Figure, figure, in_turn
from benchmarks.run.pong import CHUNK_LENGTH, fill, hello, record, samples_of
from benchmarks.run.workers import Step, Worker, together

ITEMS, RECORDED = 100_000, 20_000
"""Transitions that fill the table, and the number of distinct ones."""
PRODUCERS, CREDITS = 4, 4
BATCH, DEPTH = 512, 4
SECONDS = 1.5
LIMIT = "ZeroMQ moving the same bytes, a core on either side"
WAIT_S = 0.1


def inserting(path: Path) -> Step:
    """Step of producers that insert as fast as credit allows; counts transitions."""
    run = RunDirectory(path)
    chunks = record(run, 2_000)
    clients = [
        InsertClient(run.endpoints().of("replay.insert"), hello(run, "actor", f"actor_{k:03d}"))
        for k in range(PRODUCERS)
    ]
    poller = Poller(*(client.client for client in clients))

    def step() -> float:
        poller.wait(WAIT_S)
        before = sum(client.inserted_items for client in clients)
        for number, client in enumerate(clients):
            client.poll()
            while client.has_credit:
                client.insert(chunks[number])
        return sum(client.inserted_items for client in clients) - before

    return step


def sampling(path: Path, returns_priorities: bool) -> Step:
    """Step of a learner that only receives batches; counts transitions."""
    run = RunDirectory(path)
    client = SampleClient(
        run.endpoints().of("replay.sample"), hello(run, "learner", "learner"), BATCH
    )
    poller, rng = Poller(client.client), np.random.default_rng(1)

    def step() -> float:
        poller.wait(WAIT_S)
        batches = client.poll()
        if returns_priorities:
            for batch in batches:
                client.update_priorities(batch.item_ids, rng.random(BATCH))
        client.ask(DEPTH - client.in_flight)
        return sum(map(len, batches))

    return step


def memory(daemon: Daemon, run: RunDirectory, chunks: list[Chunk]) -> Figure:
    """Memory growth per transition, compared with the size of its new compressed frame."""
    before = cores.resident_bytes(daemon.pid)
    fill(run, chunks, ITEMS)
    grown = (cores.resident_bytes(daemon.pid) - before) / ITEMS
    lengths = np.concatenate([c.frames.frame_lengths for c in chunks if c.frames is not None])
    limit = "compressed bytes of a new frame"
    return figure("memory", "bytes a transition", [(grown, float(lengths.mean()))], limit,
                  bar=1.5, lower_is_better=True)  # fmt: skip


def alone(case: str, ours: Worker, bare: Worker, goal: float) -> Figure:
    """Measure inserts or samples alone."""
    pairs = in_turn(lambda: ours.measure(SECONDS), lambda: bare.measure(SECONDS))
    return figure(case, "transitions/s", pairs, LIMIT, goal=goal)


def at_once(ours: Sequence[Worker], bare: Sequence[Worker], goal: float) -> list[Figure]:
    """Measure inserts and samples at once."""
    pairs = in_turn(partial(together, ours, SECONDS), partial(together, bare, SECONDS))
    shown = []
    for k, name in enumerate(("inserts at once", "samples at once")):
        mine = [(value[k], limit[k]) for value, limit in pairs]
        shown.append(figure(name, "transitions/s", mine, LIMIT, goal=goal))
    return shown


def measure(folder: Path) -> Sequence[Figure]:
    """Measure all cases."""
    run = pong_run(folder / "run", ["replay.samples_per_insert=0", "replay.min_size=1000"])
    chunks = record(run, RECORDED)
    address = f"ipc://{folder}/bare.sock"
    insert = [bytes(f) for f in encode(Insert(seq=0), chunk_to_arrays(chunks[0]))]
    reply = SampleReply(request_id=0, table_items=ITEMS)
    sampled = [bytes(f) for f in encode(reply, samples_to_arrays(samples_of(run, BATCH)))]
    make: Callable[..., Worker] = partial(Worker, exchanging, cores.TRAINING, address)
    with (
        Daemons(run) as daemons,
        Answerer(address, {b"insert": [b"ack"], b"sample": sampled}, cores.OTHERS),
        make([b"insert", *insert], PRODUCERS, CREDITS, CHUNK_LENGTH) as bare_inserts,
        make([b"sample"], 1, DEPTH, BATCH) as bare_samples,
    ):
        server = daemons.replay(cores.OTHERS)
        daemons.asker("replay.sample")
        shown = [memory(server, run, chunks)]
        with (
            Worker(inserting, cores.TRAINING, run.path) as inserts,
            Worker(sampling, cores.TRAINING, run.path, True) as samples,
            Worker(sampling, cores.TRAINING, run.path, False) as only_samples,
        ):
            shown += [
                alone("inserts", inserts, bare_inserts, 60_000),
                alone("samples", only_samples, bare_samples, 100_000),
                *at_once((inserts, samples), (bare_inserts, bare_samples), 30_000),
            ]
        daemons.check()
    return shown
