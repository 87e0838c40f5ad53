"""Conversion between batches and NumPy arrays, and random batches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apex.acting.exploration import Progress
from apex.algos.base import Algorithm, Learner
from apex.algos.batches import Sequences, Transitions
from apex.algos.sequence_batches import SequenceAlgorithm
from apex.envs.spec import EnvSpec

START = Progress(0, 0)


def batch_of(arrays: Mapping[str, Any]) -> Transitions | Sequences:
    """Make a batch of arrays by name; a name that is not one of its fields becomes an extra."""
    tensors = {name: torch.as_tensor(array) for name, array in arrays.items()}
    tensors.pop("learner_step", None)
    if "is_first" not in tensors:
        extras = {n: tensors.pop(n) for n in [*tensors] if n not in Transitions._fields}
        return Transitions(**tensors, extras=extras)
    is_first = tensors["is_first"]
    tensors.setdefault("core_state", torch.zeros(len(is_first), 0))
    extras = {n: tensors.pop(n) for n in [*tensors] if n not in Sequences._fields}
    edges = tuple(np.flatnonzero(is_first.any(dim=0).numpy()).tolist())
    return Sequences(**tensors, episode_edges=edges, extras=extras)


def learn(learner: Learner, given: Any) -> tuple[np.ndarray, dict[str, float]]:
    """Make one update; returns priorities `[B] float64` and metrics as numbers."""
    update = learner.learn(given if isinstance(given, tuple) else batch_of(given), START)
    metrics = {name: float(value) for name, value in update.metrics.items()}
    return update.priorities.double().numpy(), metrics


def arrays_of(batch: Transitions | Sequences) -> dict[str, np.ndarray]:
    """The tensors of a batch by name, extras included."""
    named = {**batch._asdict(), **batch.extras}
    return {name: value.numpy() for name, value in named.items() if isinstance(value, Tensor)}


def random_transitions(algorithm: Algorithm, batch_size: int, seed: int = 0) -> dict[str, Any]:
    """Transitions of an algorithm with random numbers, as arrays by name."""
    rng, spec = np.random.default_rng(seed), algorithm.spec
    return {
        "observation": _observations(spec, (batch_size,), rng),
        "next_observation": _observations(spec, (batch_size,), rng),
        "action": spec.random_actions(batch_size, rng).astype(spec.action_column.dtype),
        "n_step_return": rng.normal(size=batch_size).astype(np.float32),
        "discount": rng.choice([0.0, 0.97], batch_size).astype(np.float32),
        "probability": rng.uniform(0.001, 0.1, batch_size).astype(np.float32),
    }


def random_sequences(algorithm: SequenceAlgorithm, batch_size: int, seed: int = 0) -> Any:
    """Sequences of an algorithm with random numbers, as arrays by name."""
    rng, spec, layout = np.random.default_rng(seed), algorithm.spec, algorithm.layout()
    shape = (batch_size, layout.length)
    actions = spec.random_actions(batch_size * layout.length, rng)
    actions = actions.reshape(*shape, *actions.shape[1:])
    arrays = {
        "observation": _observations(spec, shape, rng),
        "action": actions.astype(np.int32),
        "reward": rng.normal(size=shape).astype(np.float32),
        "discount": np.full(shape, 0.9, np.float32),
        "is_first": rng.random(shape) < 0.1,
        "is_last": np.zeros(shape, np.bool_),
        "last_action": actions.astype(np.int32),
        "last_reward": rng.normal(size=shape).astype(np.float32),
        "probability": np.full(batch_size, 0.01, np.float32),
    }
    for column in layout.row_extras:
        arrays[column.name] = rng.normal(size=(*shape, *column.shape)).astype(column.dtype)
    for column in layout.first_extras:
        arrays[column.name] = np.zeros((batch_size, *column.shape), column.dtype)
    return arrays


def _observations(spec: EnvSpec, rows: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    shape = (*rows, *spec.policy_shape)
    if spec.observation_dtype == "uint8":
        return rng.integers(0, 256, shape).astype(np.uint8)
    return rng.normal(size=shape).astype(spec.observation_dtype)
