"""Batches of items that a preset's own policy made by playing."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from apex.acting.agent import LocalDecider
from apex.acting.loop import ActingLoop
from apex.algos.agent_factory import make_agent
from apex.algos.base import Algorithm
from apex.algos.registry import make_algorithm
from apex.config import loading
from apex.daemons.learner.prefetcher import prepare
from apex.data.chunks import Chunk, Samples
from apex.envs.recreation import close
from apex.envs.registry import make_environments
from apex.replay.table.store import Store

NUM_ENVS = 8
ITEMS = 256
"""At least so many items are played; larger batches repeat some."""


@functools.cache
def _played(preset: str, settings: tuple[str, ...]) -> tuple[Algorithm, list[Chunk]]:
    given = [f"actor.num_envs={NUM_ENVS}", "actor.count=2", *settings]
    table = loading.read_table(preset, settings=given)
    config = loading.parse(loading.apply_overlay(table, gpu=True))
    environments = make_environments(config.env, NUM_ENVS)
    algorithm = make_algorithm(config.algorithm, environments.spec)
    policy = algorithm.policy()
    agent = make_agent(algorithm, config, policy.core_size, slot=0, incarnation=0)
    loop = ActingLoop(environments, LocalDecider(policy, agent), seed=1)
    chunks: list[Chunk] = []
    while sum(map(len, chunks)) < ITEMS:
        loop.step()
        chunks += agent.take_chunks()
    close(environments)
    return algorithm, chunks


def played_batches(
    preset: str, size: int, count: int = 1, settings: Sequence[str] = (), *, packed: bool = False
) -> tuple[Algorithm, list[Any]]:
    """The algorithm of a preset as a machine with a GPU has it, and batches on the CPU.

    Args:
        preset: name of a preset.
        size: items per batch.
        count: number of batches.
        settings: as of `--set`.
        packed: as they cross to a GPU (`Algorithm.pack`).
    """
    algorithm, chunks = _played(preset, tuple(settings))
    make, total = algorithm.pack if packed else algorithm.collate, sum(map(len, chunks))
    store, slot = Store(algorithm.schema(), total), 0
    for chunk in chunks:
        store.put(np.arange(slot, slot + len(chunk)), chunk)
        slot += len(chunk)
    rng, batches = np.random.default_rng(1), []
    for _ in range(count):
        chosen = rng.choice(total, size, replace=size > total)
        columns, frames = store.get(chosen)
        samples = Samples(chosen, np.full(size, 1 / total), columns, frames)
        batches.append(prepare(samples, algorithm.schema(), make).data)
    return algorithm, batches
