"""The interface of accumulators, which turn environment steps into items."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from apex.data.chunks import Chunk
from apex.data.observations import Observations
from apex.data.schema import Array

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class VectorStep:
    """One step of E environments: observations, actions and their results.

    Args:
        observations: `[E, *observation_shape]`, or by name, before the action.
        actions: `[E, *action shape]`.
        extras: the policy's extra outputs, `[E, ...]` each.
        rewards: `[E] float64`, clipped if `env.clip_rewards` is set.
        terminated: `[E] bool`, the episode ended with this step; do not bootstrap.
        truncated: `[E] bool`, the episode was cut off at this step; bootstrap from its last
            observation.
        life_lost: `[E] bool`, learn as if terminated, though the episode continues.
        ignored: `[E] bool`, the environment ignored the action and started a new episode: the
            observation is the last one of the previous episode, and the step is no transition.
        learner_step: learner step of the parameters that chose the actions.
    """

    observations: Observations
    actions: Array
    extras: Mapping[str, Floats]
    rewards: Floats
    terminated: Bools
    truncated: Bools
    life_lost: Bools
    ignored: Bools
    learner_step: int


class Accumulator(Protocol):
    """Turns the steps of a vector of environments into chunks of items."""

    def add(self, step: VectorStep) -> list[Chunk]:
        """Add one step; returns the chunks that it completed."""

    def flush(self) -> list[Chunk]:
        """Return the complete items that are not yet in a chunk. Called at shutdown."""
