"""Batches that algorithms learn from: n-step transitions, and sequences."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Observation = Tensor | dict[str, Tensor]
"""`[B, ...]`, or one such tensor for each part of a dictionary observation."""

_NO_EXTRAS: Any = MappingProxyType({})


class Transitions(NamedTuple):
    """B n-step transitions, on the learner's device."""

    observation: Observation
    """`[B, *policy_shape]`, where the action was chosen."""
    action: Tensor
    """`[B, *action shape]`: int32, or float32 where actions are continuous."""
    n_step_return: Tensor
    """`[B] float32`: sum of gamma^k r_{t+k} over the k < n rewards of the transition."""
    discount: Tensor
    """`[B] float32`: gamma^n of the bootstrap value; 0 after a termination."""
    next_observation: Observation
    """`[B, *policy_shape]`, n steps later: the bootstrap observation."""
    probability: Tensor
    """`[B] float32`: P(i) with which the item was sampled."""
    action_mask: Tensor | None = None
    """`[B, num_actions] bool`, the actions that were allowed; None: all."""
    next_action_mask: Tensor | None = None
    """`[B, num_actions] bool`, at the bootstrap observation; None: all."""
    extras: dict[str, Tensor] = _NO_EXTRAS
    """`[B, ...]` each: what the policy added to the items (`Algorithm.extra_columns`)."""


class Sequences(NamedTuple):
    """B sequences of L rows, on the learner's device (`apex/acting/sequence_accumulator.py`)."""

    observation: Observation
    """`[B, L, *policy_shape]`."""
    action: Tensor
    """`[B, L, *action shape]`: int32, or float32 where actions are continuous."""
    reward: Tensor
    """`[B, L] float32`, of the action."""
    discount: Tensor
    """`[B, L] float32`: gamma, or 0 after a termination."""
    is_first: Tensor
    """`[B, L] bool`: the row begins an episode."""
    is_last: Tensor
    """`[B, L] bool`: the final observation of a truncated episode; nothing is learned at it."""
    last_action: Tensor
    """`[B, L, *action shape]`, of the row before; 0 where an episode begins."""
    last_reward: Tensor
    """`[B, L] float32`, of the row before; 0 where an episode begins."""
    core_state: Tensor
    """`[B, core_size] float32`, recurrent state before the first row."""
    probability: Tensor
    """`[B] float32`: P(i) with which the item was sampled."""
    episode_edges: tuple[int, ...]
    """Rows at which an episode begins in any of the sequences. Integers of the host: a network
    with memory cuts its loop there without asking the device."""
    action_mask: Tensor | None = None
    """`[B, L, num_actions] bool`, the actions that were allowed; None: all."""
    extras: dict[str, Tensor] = _NO_EXTRAS
    """`[B, L, ...]` each: what the policy added to each row."""


def map_tensors(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A batch of the same form, with a function applied to each of its tensors.

    Args:
        batch: named tuples, tuples, dictionaries, tensors and NumPy arrays within each other;
            anything else stays as it is.
        function: takes and gives a tensor.
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, np.ndarray):
        forward = min(batch.strides, default=0) >= 0
        return function(torch.from_numpy(batch if forward else batch.copy()))
    if isinstance(batch, (dict, MappingProxyType)):
        return {name: map_tensors(part, function) for name, part in batch.items()}
    if isinstance(batch, tuple):
        parts = [map_tensors(part, function) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch
