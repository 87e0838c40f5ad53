"""Recorded random play of Pong: raw frames from which apex and its peers make transitions."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np

from apex.acting.accumulator import VectorStep
from apex.algos.transition_batches import MAX_Q, Q_VALUE
from apex.data.chunks import Chunk
from apex.data.schema import Array
from apex.envs.registry import make_environments
from apex.runs.directory import RunDirectory
from benchmarks.run.pong import CHUNK_LENGTH, NUM_ENVS, algorithm_of

COLUMNS = ("frames", "actions", "rewards", "terminated", "truncated")


def record(run: RunDirectory, folder: Path, steps: int) -> None:
    """Play and save `COLUMNS`, each `[steps, NUM_ENVS, ...]`; the last step truncates all episodes.

    Args:
        run: run whose environment is played.
        folder: folder for one `.npy` file per column.
        steps: number of steps of each environment.
    """
    environments = make_environments(run.config().env, NUM_ENVS)
    rng, observations, rows = np.random.default_rng(1), environments.reset(seed=1), []
    for _ in range(steps):
        actions = rng.integers(0, environments.spec.num_actions, NUM_ENVS)
        result = environments.step(actions)
        rows.append(
            (observations.copy(), actions, np.clip(result.rewards, -1, 1),
             result.terminated.copy(), result.truncated.copy())
        )  # fmt: skip
        observations = result.observations
    environments.close()
    for name, values in zip(COLUMNS, zip(*rows)):
        column = np.array(values)
        if name == "truncated":
            column[-1] = True
        np.save(folder / f"{name}.npy", column)


def vector_steps(folder: Path) -> Iterator[VectorStep]:
    """The recorded steps, repeated endlessly, as an agent passes them to its accumulator."""
    columns: dict[str, Array] = {name: np.load(folder / f"{name}.npy") for name in COLUMNS}
    ended = columns["terminated"] | columns["truncated"]
    zeros, nowhere = np.zeros(NUM_ENVS), np.zeros(NUM_ENVS, dtype=np.bool_)
    for t in cycle(range(len(ended))):
        yield VectorStep(
            columns["frames"][t], columns["actions"][t], {Q_VALUE: zeros, MAX_Q: zeros + 1.0},
            columns["rewards"][t], columns["terminated"][t], columns["truncated"][t], nowhere,
            ended[t - 1], 0,
        )  # fmt: skip


def chunks_of(run: RunDirectory, folder: Path, items: int) -> list[Chunk]:
    """Chunks with at least `items` transitions of the recording."""
    accumulator = algorithm_of(run).accumulator(NUM_ENVS, CHUNK_LENGTH)
    chunks: list[Chunk] = []
    for step in vector_steps(folder):
        chunks += accumulator.add(step)
        if sum(map(len, chunks)) >= items:
            break
    return chunks
