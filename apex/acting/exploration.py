"""Exploration: the ladder of Ape-X; epsilon-greedy, sampled and noisy actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from apex.data.schema import Array

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class LadderPlace(NamedTuple):
    """The places of E environments on the exploration ladder of a run."""

    positions: Floats
    """`[E]`, from 0 to `size - 1`."""
    size: int
    """Rungs of the whole ladder."""
    seeds: Sequence[Sequence[int]]
    """A sequence of integers for each environment, which no other has."""


class Progress(NamedTuple):
    """How far a run is: numbers where actions are chosen, tensors inside an update."""

    learner_step: Any
    """Updates so far."""
    env_steps: Any
    """Environment steps of all actors so far."""


def ladder_positions(slot: int, num_actors: int, num_envs: int) -> Floats:
    """Where the environments of one actor stand on the ladder.

    The ladder has `num_actors * num_envs` rungs, dealt out so that each actor has rungs from all
    over it. An actor beyond the configured number (a slot past the last) takes midpoints between
    the rungs of an actor before it.

    Returns:
        `[num_envs] float64` in [0, num_actors * num_envs - 1].
    """
    own, extra = slot % num_actors, slot >= num_actors
    rungs = own + num_actors * np.arange(num_envs, dtype=np.float64)
    return np.minimum(rungs + 0.5 * extra, num_actors * num_envs - 1)


def place_seeds(
    seed: int, slot: int, incarnation: int, num_envs: int, agents_before: int = 0
) -> list[tuple[int, ...]]:
    """A seed for each environment of the actor in a slot, another one at each of its starts.

    Args:
        seed: of the run.
        slot: of the actor.
        incarnation: of the actor in that slot.
        num_envs: of the actor.
        agents_before: that were made for this incarnation, by an inference server that was started
            again or had forgotten the actor: each explores differently.
    """
    # The 0 tells them from `environments_seed`, which has a number from 1 on there.
    again = (0, agents_before) if agents_before else ()
    return [(seed, slot, env, incarnation, *again) for env in range(num_envs)]


def environments_seed(seed: int, slot: int, incarnation: int, faults: int = 0) -> int:
    """A seed for the environments of the actor in a slot, also by their faults so far."""
    return _first_seed(seed, slot, 0, incarnation, 1 + faults)


def evaluation_seed(seed: int, param_version: int = 0, faults: int = 0) -> int:
    """A seed for the environments of an evaluation: their games are those of no other.

    Args:
        seed: of the run, or of a command that plays a checkpoint.
        param_version: that is evaluated; a run evaluates none twice, also after a restart.
        faults: of the environments so far.
    """
    return _first_seed(seed, param_version, 1, faults, 1)


def _first_seed(*numbers: int) -> int:
    """A seed of 30 bits; those that follow it, one an environment, fit the int32 of ALE too.

    Numbers are hashed, so that seeds that follow one another have no environment in common.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 2)


def epsilon_ladder(positions: Floats, size: int, epsilon: float, alpha: float) -> Floats:
    """epsilon_i = epsilon^(1 + alpha * i / (N - 1)) (Horgan et al., 2018, section 4.1).

    A ladder of one rung has epsilon^(1 + alpha / 2).

    Args:
        positions: `[E]`, i, from 0 to N - 1.
        size: N, rungs of the whole ladder.
    """
    result: Floats = np.power(epsilon, 1.0 + alpha * _fractions(positions, size))
    return result


def noise_ladder(positions: Floats, size: int, largest: float, smallest: float) -> Floats:
    """sigma_i = largest * (smallest / largest)^(i / (N - 1)): equal factors from rung to rung.

    A ladder of one rung has the geometric mean.

    Args:
        positions: `[E]`, i, from 0 to N - 1.
        size: N, rungs of the whole ladder.
    """
    result: Floats = largest * np.power(smallest / largest, _fractions(positions, size))
    return result


def _fractions(positions: Floats, size: int) -> Floats:
    return positions / (size - 1) if size > 1 else np.full_like(positions, 0.5)


class EpsilonGreedy:
    """Replaces each environment's greedy action by a random one with its own epsilon.

    Args:
        epsilons: `[E]`.
        num_actions: actions to choose from.
        seeds: one sequence of integers an environment; every environment has its own generator,
            so that its draws do not depend on how environments are grouped.
    """

    def __init__(self, epsilons: Floats, num_actions: int, seeds: Sequence[Sequence[int]]) -> None:
        self.epsilons = epsilons
        self._num_actions = num_actions
        self._generators = [np.random.default_rng(list(seed)) for seed in seeds]

    def describe(self) -> str:
        """The range of epsilons."""
        return f"epsilon {self.epsilons.min():.4f} to {self.epsilons.max():.4f}"

    def __call__(self, values: Floats) -> Ints:
        """Actions `[E]` from action values `[E, A]`."""
        actions: Ints = values.argmax(axis=1)
        for env, generator in enumerate(self._generators):
            if generator.random() < self.epsilons[env]:
                actions[env] = generator.integers(self._num_actions)
        return actions


class Sampled:
    """Draws each environment's action from the softmax of its logits.

    Args:
        seeds: one sequence of integers an environment; every environment has its own generator.
    """

    def __init__(self, seeds: Sequence[Sequence[int]]) -> None:
        self._generators = [np.random.default_rng(list(seed)) for seed in seeds]

    def describe(self) -> str:
        """That actions are sampled."""
        return "actions sampled from the policy"

    def __call__(self, values: Floats) -> Ints:
        """Actions `[E]` from logits `[E, A]`."""
        odds = np.exp(values - values.max(axis=1, keepdims=True), dtype=np.float64)
        mass = np.cumsum(odds, axis=1)
        points = np.array([generator.random() for generator in self._generators])
        actions: Ints = (mass <= (points * mass[:, -1])[:, None]).sum(axis=1)
        return actions


class GaussianNoise:
    """Adds normally distributed noise to actions and keeps them within their bounds.

    Args:
        sigmas: `[E]`, standard deviations, of half the distance between an action's bounds.
        low: `[*action shape]`, the lower bounds.
        high: `[*action shape]`, the higher ones.
        seeds: one sequence of integers an environment; every environment has its own generator.
    """

    def __init__(
        self, sigmas: Floats, low: Array, high: Array, seeds: Sequence[Sequence[int]]
    ) -> None:
        self.sigmas = sigmas
        self._low, self._high = low, high
        self._half = (high - low) / 2.0
        self._generators = [np.random.default_rng(list(seed)) for seed in seeds]

    def describe(self) -> str:
        """The range of sigmas."""
        return f"noise {self.sigmas.min():.3f} to {self.sigmas.max():.3f}"

    def __call__(self, values: Array) -> Array:
        """Actions `[E, *action shape]` from greedy ones."""
        noise = np.stack([one.standard_normal(self._half.shape) for one in self._generators])
        noise *= self.sigmas.reshape(-1, *(1,) * self._half.ndim) * self._half
        actions: Array = np.clip(values + noise, self._low, self._high).astype(values.dtype)
        return actions
