"""What a policy sees and what it decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from apex.data.schema import Array, Arrays


class Inputs(NamedTuple):
    """What a policy sees of E environments."""

    observations: Array
    """`[E, *policy_shape]`."""
    core_state: npt.NDArray[np.float32]
    """`[E, core_size]`, recurrent state; zeros where an episode begins."""
    last_actions: Array
    """`[E, *action shape]`, of the step before; 0 where an episode begins."""
    last_rewards: npt.NDArray[np.float32]
    """`[E]`, of the step before, as `seen_rewards` gives them; 0 where an episode begins."""

    @classmethod
    def joined(cls, parts: Sequence[Inputs]) -> Inputs:
        """Those of several agents, one after the other, as a copy."""
        return cls(*map(np.concatenate, zip(*parts)))


def seen_rewards(rewards: npt.NDArray[np.float64], *, clip: bool) -> npt.NDArray[np.float64]:
    """Rewards as an agent sees them and learns from them, wherever it acts.

    Args:
        rewards: `[E]`, as the environments gave them.
        clip: to [-1, 1] (`env.clip_rewards`).
    """
    return np.minimum(np.maximum(rewards, -1.0), 1.0) if clip else rewards


class Decision(NamedTuple):
    """What a policy decided for E environments."""

    actions: Array
    """`[E, *action shape]`, int64 or float32: as the environments take them."""
    core_state: npt.NDArray[np.float32]
    """`[E, core_size]`, after this step."""
    extras: Arrays
    """What items are made of besides: `[E, ...]` each."""

    def rows(self, begin: int, end: int) -> Decision:
        """What was decided for some of the environments."""
        extras = {name: array[begin:end] for name, array in self.extras.items()}
        return Decision(self.actions[begin:end], self.core_state[begin:end], extras)


class Exploration(Protocol):
    """Chooses actions from what a policy computed, for each environment in its own measure."""

    def __call__(self, values: Array) -> Array:
        """Actions `[E, *action shape]` from action values or logits `[E, A]`, or from the greedy
        actions of a deterministic policy."""

    def describe(self) -> str:
        """For the log: how much it explores."""


class JoinedExploration:
    """The explorations of several agents as one.

    Args:
        parts: with the number of environments of each.
    """

    def __init__(self, parts: Sequence[tuple[Exploration, int]]) -> None:
        self._parts = parts

    def __call__(self, values: Array) -> Array:
        """Each agent's own exploration for its own rows."""
        edges = np.cumsum([0, *(size for _, size in self._parts)])
        return np.concatenate(
            [one(values[begin : begin + n]) for (one, n), begin in zip(self._parts, edges)]
        )

    def describe(self) -> str:
        """That of each."""
        return ", ".join(one.describe() for one, _ in self._parts)


class ActingPolicy(Protocol):
    """Chooses actions for E environments."""

    core_size: int
    """Numbers in the recurrent state of one environment; 0: it has no memory."""

    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        """Decide; greedily where `exploration` is None."""
