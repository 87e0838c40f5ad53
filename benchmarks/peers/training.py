"""Training on Pong with both cores, by apex and a peer in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.peers.processes import Peer
from benchmarks.peers.suites import Suite, prepared
from benchmarks.run import cores
from benchmarks.run.figures import Figure, figure, in_turn

SECONDS = 20.0
REPETITIONS = 3
FREE = "as fast as it goes"
KINDS = {"env_steps": "env steps/s", "trained_samples": "trained samples/s"}
Start = Callable[[], Suite]


def in_its_turn(contender: Suite | Peer) -> dict[str, float]:
    """Continue a paused contender, measure it, and pause it again."""
    contender.go_on()
    rates = contender.measure_all(SECONDS)
    contender.stop()
    return rates


def compared(
    folder: Path,
    environment: str,
    loop: str,
    options: dict[str, Any],
    suites: dict[str, Start],
    unequal: Sequence[str] = (),
    **paths: str,
) -> Sequence[Figure]:
    """Compare each suite with the peer.

    Args:
        folder: folder for the peer's output.
        environment: environment of the peer.
        loop: loop of the peer.
        options: options of the loop, saved with the figures.
        suites: functions that start the suites, by case.
        unequal: cases without a bar, because apex has another ratio of samples to steps there.
        paths: further options, not saved.
    """
    shown: list[Figure] = []
    with Peer(environment, loop, cores.AVAILABLE, folder, **options, **paths) as peer:
        peer.stop()
        for case, start in suites.items():
            with start() as suite:
                suite.stop()
                turns = partial(in_its_turn, suite), partial(in_its_turn, peer)
                pairs = in_turn(*turns, REPETITIONS)
            for kind, unit in KINDS.items():
                both = [(ours[kind], theirs[kind]) for ours, theirs in pairs]
                named = f"{case}: {kind.replace('_', ' ')}"
                bar = None if case in unequal else 1.0
                extra = {"options": options, "turns": both}
                shown.append(figure(named, unit, both, loop, bar=bar, **extra))
    return shown


def dqn_suites(folder: Path, batch: int, samples_per_step: float) -> dict[str, Start]:
    """Apex's DQN at full speed, and with the peer's ratio of samples to steps.

    With the ratio there are few steps. Chunks are shorter there, so that they arrive evenly, and
    the learner has a thread on each core, as in the preset.
    """
    common = [f"learner.batch_size={batch}", "replay.min_size=1000"]
    free = [*common, "replay.samples_per_insert=0", "learner.torch_threads=1"]
    held = [*common, f"replay.samples_per_insert={samples_per_step}", "actor.chunk_length=10",
            "learner.torch_threads=2"]  # fmt: skip
    return {
        FREE: lambda: Suite(prepared(folder / "free", "pong", free), batch, cores.TRAINING),
        f"{samples_per_step:g} samples a step": lambda: Suite(
            prepared(folder / "held", "pong", held), batch
        ),
    }


def impala_suites(folder: Path, unroll: int, batch: int) -> dict[str, Start]:
    """Apex's IMPALA with the paper's network on 84x84 frames.

    Args:
        folder: folder for its run.
        unroll: steps per item.
        batch: steps per update.
    """
    settings = [
        "env.frame_size=[84, 84]", "algorithm.conv=[[32, 8, 4], [64, 4, 2], [64, 3, 1]]",
        "algorithm.hidden=[512]", f"algorithm.unroll_length={unroll}",
        f"learner.batch_size={batch // unroll}", "learner.torch_threads=1",
    ]  # fmt: skip
    return {
        FREE: lambda: Suite(
            prepared(folder / "free", "pong-impala", settings), batch, cores.TRAINING
        )
    }
