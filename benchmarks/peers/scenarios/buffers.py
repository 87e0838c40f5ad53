"""Apex's replay server beside in-process buffers, which need no network at all."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from apex.runs.directory import RunDirectory
from benchmarks.peers.processes import Peer
from benchmarks.peers.recording import chunks_of, record
from benchmarks.peers.scenarios.reverb import STEPS, inserting
from benchmarks.run import cores
from benchmarks.run.daemons import Daemons, pong_run
from benchmarks.run.figures import Figure, figure, in_turn
from benchmarks.run.pong import NUM_ENVS, fill
from benchmarks.run.scenarios.learner_data import BATCH, batches
from benchmarks.run.workers import Worker

ITEMS = 20_000
SECONDS = 2.0
PEERS = {
    "torchrl": "TorchRL in the process, evenly sampled",
    "cpprb": "cpprb in the process, prioritized",
}


@contextmanager
def filled(folder: Path) -> Iterator[RunDirectory]:
    """A replay server with `ITEMS` transitions of the recording."""
    run = pong_run(folder / "run", ["replay.samples_per_insert=0", "replay.min_size=1000"])
    record(run, folder, STEPS)
    with Daemons(run) as daemons:
        daemons.replay(cores.OTHERS)
        daemons.asker("replay.sample")
        fill(run, chunks_of(run, folder, STEPS * NUM_ENVS), ITEMS)
        yield run
        daemons.check()


def measure(folder: Path) -> Sequence[Figure]:
    """Measure all cases."""
    shown = []
    theirs = partial(
        Peer, "torch", "buffers", cores.TRAINING, folder,
        recording=str(folder), capacity=ITEMS, batch=BATCH,
    )  # fmt: skip
    with (
        filled(folder) as run,
        Worker(inserting, cores.TRAINING, run.path, folder) as inserts,
        Worker(batches, cores.TRAINING, run.path, 1) as samples,
    ):
        for case, ours in (("inserts", inserts), ("samples", samples)):
            for buffer, limit in PEERS.items():
                with theirs(buffer=buffer, inserts=case == "inserts") as peer:
                    turns = partial(ours.measure, SECONDS), partial(peer.measure, SECONDS)
                    pairs = in_turn(*turns)
                shown.append(figure(f"{case}, {buffer}", "transitions/s", pairs, limit))
    return shown
