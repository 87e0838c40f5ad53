"""The interface of accumulators, which make items of environment steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from apex.data.chunks import Chunk
from apex.data.schema import Array

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class VectorStep:
    """One step of E environments: what was seen, what was done, and what came of it.

    Args:
        observations: `[E, *observation_shape]`, before the action.
        actions: `[E, *action shape]`.
        extras: what the policy said besides the action, `[E]` each.
        rewards: `[E] float`, as learned from.
        terminated: `[E]`, the episode ended with this step and has no value beyond.
        truncated: `[E]`, the episode was cut with this step; its value goes on.
        life_lost: `[E]`, learn as if terminated, though the episode goes on.
        ignored: `[E]`, the environment ignored the action and started a new episode: the
            observation is the last one of the episode before, and this step is no transition.
        learner_step: of the parameters that acted.
    """

    observations: Array
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
        """Take one step; gives the chunks that it completed."""

    def flush(self) -> list[Chunk]:
        """The items that are complete but not yet in a chunk, for an orderly end."""
