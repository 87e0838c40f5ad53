"""The inputs and the decisions of a policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from apex.data.observations import Observations, concatenate
from apex.data.schema import Array, Arrays


class Inputs(NamedTuple):
    """A policy's inputs for E environments."""

    observations: Observations
    """`[E, *policy_shape]`, or by name for an observation of parts."""
    core_state: npt.NDArray[np.float32]
    """`[E, core_size]`, the recurrent state; 0 where an episode begins."""
    last_actions: Array
    """`[E, *action shape]`, the previous step's actions; 0 where an episode begins."""
    last_rewards: npt.NDArray[np.float32]
    """`[E]`, the previous step's rewards from `seen_rewards`; 0 where an episode begins."""

    @classmethod
    def joined(cls, parts: Sequence[Inputs]) -> Inputs:
        """Concatenate the inputs of several agents, as a copy."""
        observations, *rest = zip(*parts)
        return cls(concatenate(observations), *map(np.concatenate, rest))

    @property
    def num_envs(self) -> int:
        """E, the number of environments."""
        return len(self.last_rewards)


def seen_rewards(rewards: npt.NDArray[np.float64], *, clip: bool) -> npt.NDArray[np.float64]:
    """The rewards that policies see and learners learn from.

    Args:
        rewards: `[E]`, the environments' rewards.
        clip: clip them to [-1, 1] (`env.clip_rewards`).
    """
    return np.minimum(np.maximum(rewards, -1.0), 1.0) if clip else rewards


class Decision(NamedTuple):
    """A policy's decision for E environments."""

    actions: Array
    """`[E, *action shape]`, int64 or float32, in the environments' range."""
    core_state: npt.NDArray[np.float32]
    """`[E, core_size]`, the recurrent state after this step."""
    extras: Arrays
    """Extra outputs for the items, by name: `[E, ...]` each."""

    def rows(self, begin: int, end: int) -> Decision:
        """The decision for the environments `begin` to `end` (exclusive)."""
        extras = {name: array[begin:end] for name, array in self.extras.items()}
        return Decision(self.actions[begin:end], self.core_state[begin:end], extras)


class Exploration(Protocol):
    """Chooses actions from a policy's output; each environment may explore differently."""

    def __call__(self, values: Array) -> Array:
        """Actions `[E, *action shape]` from action values or logits `[E, A]`, or from a
        deterministic policy's actions `[E, *action shape]`.

        An action that a mask forbids has the value -inf, or a logit so low that its probability is
        0; it must not be chosen."""

    def describe(self) -> str:
        """A short text for the log, such as `epsilon 0.0007 to 0.4000`."""


def exploration_metrics(exploration: Exploration | None) -> dict[str, float]:
    """Curves of an exploration: what its method `metrics`, if it has one, returns by name.

    The names begin with `exploration/` in an actor's records and in TensorBoard.
    """
    metrics: Mapping[str, float] = getattr(exploration, "metrics", dict)()
    return {f"exploration/{name}": float(value) for name, value in metrics.items()}


class JoinedExploration:
    """Combines the explorations of several agents.

    Args:
        parts: each agent's exploration and its number of environments.
    """

    def __init__(self, parts: Sequence[tuple[Exploration, int]]) -> None:
        self._parts = parts

    def __call__(self, values: Array) -> Array:
        """Apply each agent's exploration to its rows."""
        begins = np.cumsum([0, *(size for _, size in self._parts)])
        return np.concatenate(
            [
                explore(values[begin : begin + size])
                for (explore, size), begin in zip(self._parts, begins)
            ]
        )

    def describe(self) -> str:
        """The descriptions of all parts."""
        return ", ".join(exploration.describe() for exploration, _ in self._parts)

    def metrics(self) -> dict[str, float]:
        """Means over all environments of the parts' metrics."""
        total = sum(size for _, size in self._parts)
        means: dict[str, float] = {}
        for exploration, size in self._parts:
            for name, value in getattr(exploration, "metrics", dict)().items():
                means[name] = means.get(name, 0.0) + value * size / total
        return means


class ActingPolicy(Protocol):
    """Chooses actions for E environments."""

    core_size: int
    """Numbers in the recurrent state of one environment; 0: the policy is not recurrent."""

    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        """Choose actions; greedily if `exploration` is None."""
