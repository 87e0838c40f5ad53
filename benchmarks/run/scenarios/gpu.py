"""The scenarios that matter on a machine with a GPU, in a short form for four minutes there.

Without a GPU the same parts run on the CPU, except for `inference`, which has nothing to compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from apex.launch.prepare import preset_config
from benchmarks.run.daemons import pong_run
from benchmarks.run.figures import Figure
from benchmarks.run.pong import NUM_ENVS
from benchmarks.run.scenarios import inference as inference_scenario
from benchmarks.run.scenarios import learner as learner_scenario
from benchmarks.run.scenarios import learner_data as learner_data_scenario
from benchmarks.run.scenarios import suite as suite_scenario

REPETITIONS = 2
SECONDS = 3.0
BATCHES = (64, 512, 128)
"""The most valuable first, for a stage that may be cut short."""
INFERENCE_BATCHES = (1, 32, 256)
SUITE_BATCH = 64
INFERENCES: tuple[suite_scenario.Inference, ...] = ("local", "central")


def learner(
    folder: Path, batches: Sequence[int] = BATCHES, more: Sequence[str] = ()
) -> Iterator[Figure]:
    """Updates per second with live replay.

    Args:
        folder: for the runs.
        batches: batch sizes.
        more: further settings of the runs, such as `learner.execution=graph`.
    """
    chunks = learner_scenario.recorded(folder)
    for batch in batches:
        yield learner_scenario.learning_figure(
            folder, batch, chunks, seconds=SECONDS, repetitions=REPETITIONS, more=more
        )


def learner_data(folder: Path) -> Iterator[Figure]:
    """Transitions per second of the learner's data path."""
    yield from learner_data_scenario.measure(folder, REPETITIONS)


def inference(folder: Path) -> Iterator[Figure]:
    """Decisions per second and latency by batch size, then env steps with central inference."""
    if torch.cuda.is_available():
        run = pong_run(folder / "curve", [])
        yield from inference_scenario.curve(run, INFERENCE_BATCHES, REPETITIONS)
    yield inference_scenario.acting(folder, actors("central"), NUM_ENVS, REPETITIONS)


def suite(folder: Path) -> Iterator[Figure]:
    """Env steps and trained samples per second of a suite with as many actors as fit.

    First with the policy in each actor, then with central inference.
    """
    for inference in INFERENCES:
        yield from suite_scenario.measure(
            folder,
            actors=actors(inference),
            batch=SUITE_BATCH,
            seconds=SECONDS,
            repetitions=REPETITIONS,
            inference=inference,
        )


def actors(inference: suite_scenario.Inference) -> int:
    """Actors of `NUM_ENVS` environments that `actor.count = 0` gives `pong` on this machine."""
    settings = ("actor.count=0", f"actor.num_envs={NUM_ENVS}", f"actor.inference={inference}")
    return preset_config("pong", settings).actor.count


PARTS: dict[str, Callable[[Path], Iterator[Figure]]] = {
    "learner": learner,
    "learner-data": learner_data,
    "inference": inference,
    "suite": suite,
}


def measure(folder: Path) -> Sequence[Figure]:
    """Measure all cases."""
    figures: list[Figure] = []
    for name, part in PARTS.items():
        own = folder / name
        own.mkdir()
        figures += part(own)
    return figures
