"""The learner's data path, from a replay server to a ready batch, compared with LZ4 alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import lz4.frame
import numpy as np

from apex.daemons.learner.prefetcher import Prefetcher
from apex.daemons.replay.client import SampleClient
from apex.data.frame_compression import lz4_frame
from apex.host import process_tuning
from apex.runs.directory import RunDirectory
from benchmarks.run import cores
from benchmarks.run.daemons import Daemons, pong_run
from benchmarks.run.figures import REPETITIONS, Figure, figure, in_turn
from benchmarks.run.pong import algorithm_of, fill, hello, record, samples_of
from benchmarks.run.workers import Step, Worker

BATCH = 512
ITEMS = 20_000
SECONDS = 2.0
DEPTH = 4
LIMIT = "LZ4 decompression of one such batch in one call, one thread"
TURN_S = 10.0


def batches(path: Path, threads: int, returns_priorities: bool = False) -> Step:
    """Step that prepares a batch and returns new priorities for it; counts transitions."""
    process_tuning.set_up(1)
    run = RunDirectory(path)

    def connect() -> SampleClient:
        endpoint = run.endpoints().of("replay.sample")
        return SampleClient(endpoint, hello(run, "learner", "learner"), BATCH)

    schema, collate = run.facts().schema, algorithm_of(run).collate
    prefetcher = Prefetcher(connect, schema, collate, DEPTH, threads)
    rng = np.random.default_rng(1)

    def step() -> float:
        batch = prefetcher.get(TURN_S)
        assert batch is not None, "no batch came"
        if returns_priorities:
            prefetcher.put_priorities(batch.item_ids, rng.random(len(batch.item_ids)))
        return len(batch.item_ids)

    return step


def decompression(path: Path) -> Step:
    """Step that only decompresses with LZ4; counts transitions."""
    process_tuning.set_up(1)
    run = RunDirectory(path)
    spec = run.facts().schema.frames
    ranges = samples_of(run, BATCH).frames
    assert spec is not None and ranges is not None
    compressed = lz4_frame(ranges, spec)

    def step() -> float:
        lz4.frame.decompress(compressed, return_bytearray=True)
        return BATCH

    return step


def measure(folder: Path, repetitions: int = REPETITIONS) -> Sequence[Figure]:
    """Measure all cases."""
    run = pong_run(folder / "run", ["replay.samples_per_insert=0", f"replay.min_size={ITEMS}"])
    with Daemons(run) as daemons:
        daemons.replay(cores.OTHERS)
        daemons.asker("replay.sample")
        fill(run, record(run, ITEMS // 4), ITEMS)
        shown = []
        for threads, kept_to, bar in ((1, cores.TRAINING, 0.60), (2, cores.AVAILABLE, None)):
            with (
                Worker(decompression, cores.TRAINING, run.path) as bare,
                Worker(batches, kept_to, run.path, threads) as ours,
            ):
                pairs = in_turn(
                    lambda: ours.measure(SECONDS), lambda: bare.measure(SECONDS), repetitions
                )
            case = f"{threads} thread" + "s, sharing both cores with replay" * (threads > 1)
            shown.append(figure(case, "transitions/s", pairs, LIMIT, bar=bar))
        daemons.check()
    return shown
