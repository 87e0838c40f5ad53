"""Batches made of NumPy arrays, updates from them, and batches as arrays again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apex.acting.exploration import Progress
from apex.algos.base import Learner
from apex.algos.batches import Sequences, Transitions

START = Progress(0, 0)


def batch_of(arrays: Mapping[str, Any]) -> Transitions | Sequences:
    """The batch of arrays by name; what is no field of it becomes an extra."""
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
    """One update from a batch or from arrays: priorities `[B] float64`, and metrics as numbers."""
    update = learner.learn(given if isinstance(given, tuple) else batch_of(given), START)
    metrics = {name: float(value) for name, value in update.metrics.items()}
    return update.priorities.double().numpy(), metrics


def arrays_of(batch: Transitions | Sequences) -> dict[str, np.ndarray]:
    """The tensors of a batch by name, extras among them."""
    named = {**batch._asdict(), **batch.extras}
    return {name: value.numpy() for name, value in named.items() if isinstance(value, Tensor)}
