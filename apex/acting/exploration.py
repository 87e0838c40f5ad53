"""Exploration: Ape-X's exploration ladder; epsilon-greedy, sampled and noisy actions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from apex.data.schema import Array

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class LadderPlace(NamedTuple):
    """The places of E environments on the run's exploration ladder, and their random seeds."""

    positions: Floats
    """`[E]`, from 0 (explores most) to `size - 1`."""
    size: int
    """Number of rungs of the whole ladder."""
    seeds: Sequence[Sequence[int]]
    """A unique seed for each environment, as a sequence of integers."""


class Progress(NamedTuple):
    """Progress of a run, as numbers or, inside an update, as 0-dimensional int64 tensors."""

    learner_step: Any
    """Learner updates so far."""
    env_steps: Any
    """Environment steps of all actors so far."""


def ladder_positions(slot: int, num_actors: int, num_envs: int) -> Floats:
    """Positions of one actor's environments on the ladder.

    The ladder has `num_actors * num_envs` rungs. Each actor gets every `num_actors`-th rung, so
    that its environments span the whole ladder. Actors beyond the configured number (`slot` >=
    `num_actors`) get midpoints between rungs.

    Returns:
        `[num_envs] float64` in [0, num_actors * num_envs - 1].
    """
    first_rung, is_extra = slot % num_actors, slot >= num_actors
    rungs = first_rung + num_actors * np.arange(num_envs, dtype=np.float64)
    return np.minimum(rungs + 0.5 * is_extra, num_actors * num_envs - 1)


def place_seeds(
    seed: int, slot: int, incarnation: int, num_envs: int, agents_before: int = 0
) -> list[tuple[int, ...]]:
    """Exploration seeds of an actor's environments; they differ at each start of the actor.

    Args:
        seed: the run's seed.
        slot: the actor's slot.
        incarnation: number of this start of the actor in that slot.
        num_envs: the actor's number of environments.
        agents_before: agents made earlier for the same incarnation, by an inference server that
            was restarted or had forgotten the actor; each gets different seeds.
    """
    # The 0 distinguishes these seeds from `environments_seed`, which has a positive number there.
    suffix = (0, agents_before) if agents_before else ()
    return [(seed, slot, env, incarnation, *suffix) for env in range(num_envs)]


def environments_seed(seed: int, slot: int, incarnation: int, faults: int = 0) -> int:
    """A seed for an actor's environments; it differs at each start and after each fault.

    Args:
        seed: the run's seed.
        slot: the actor's slot.
        incarnation: number of this start of the actor in that slot.
        faults: faults of its environments so far.
    """
    return _first_seed(seed, slot, 0, incarnation, 1 + faults)


def evaluation_seed(seed: int, param_version: int = 0, faults: int = 0) -> int:
    """A seed for the environments of an evaluation, different from all other evaluations.

    Args:
        seed: seed of the run, or of a command that plays a checkpoint.
        param_version: version of the evaluated parameters; a run evaluates each at most once.
        faults: faults of the environments so far.
    """
    return _first_seed(seed, param_version, 1, faults, 1)


def _first_seed(*numbers: int) -> int:
    """Hash numbers to a 30-bit seed for the first environment; environment e gets seed + e.

    With 30 bits these sums fit ALE's int32. Hashing keeps the ranges of different calls apart.
    """
    return int(np.random.SeedSequence(numbers).generate_state(1)[0] >> 2)


def epsilon_ladder(positions: Floats, size: int, epsilon: float, alpha: float) -> Floats:
    """epsilon_i = epsilon^(1 + alpha * i / (N - 1)) (Horgan et al., 2018, section 4.1).

    A ladder of one rung has epsilon^(1 + alpha / 2).

    Args:
        positions: `[E]`, i, from 0 to N - 1.
        size: N, the number of rungs.
        epsilon: epsilon of the first rung.
        alpha: exponent; larger values make epsilon fall more steeply.

    Returns:
        `[E] float64`.
    """
    result: Floats = np.power(epsilon, 1.0 + alpha * _fractions(positions, size))
    return result


def noise_ladder(positions: Floats, size: int, largest: float, smallest: float) -> Floats:
    """sigma_i = largest * (smallest / largest)^(i / (N - 1)): a geometric sequence.

    A ladder of one rung has the geometric mean of `largest` and `smallest`.

    Args:
        positions: `[E]`, i, from 0 to N - 1.
        size: N, the number of rungs.
        largest: sigma of the first rung.
        smallest: sigma of the last rung.

    Returns:
        `[E] float64`.
    """
    result: Floats = largest * np.power(smallest / largest, _fractions(positions, size))
    return result


def _fractions(positions: Floats, size: int) -> Floats:
    return positions / (size - 1) if size > 1 else np.full_like(positions, 0.5)


class EpsilonGreedy:
    """Takes a uniformly random action with probability epsilon, else the greedy action.

    Actions with the value -inf are forbidden and never taken.

    Args:
        epsilons: `[E]`, each environment's epsilon.
        num_actions: number of discrete actions.
        seeds: one seed (a sequence of integers) per environment. Each environment has its own
            generator, so its random numbers do not depend on how environments are grouped.
    """

    def __init__(self, epsilons: Floats, num_actions: int, seeds: Sequence[Sequence[int]]) -> None:
        self.epsilons = epsilons
        self._num_actions = num_actions
        self._generators = [np.random.default_rng(list(seed)) for seed in seeds]

    def describe(self) -> str:
        """The range of epsilons."""
        return f"epsilon {self.epsilons.min():.4f} to {self.epsilons.max():.4f}"

    def metrics(self) -> dict[str, float]:
        """The mean epsilon, for the actor's metrics."""
        return {"epsilon": float(self.epsilons.mean())}

    def __call__(self, values: Floats) -> Ints:
        """Actions `[E]` from action values `[E, A]`."""
        actions: Ints = values.argmax(axis=1)
        for env, generator in enumerate(self._generators):
            if generator.random() < self.epsilons[env]:
                # NaN forbids nothing: a network that diverged must not end its actor.
                allowed = np.flatnonzero(values[env] != -np.inf)
                if not len(allowed):
                    allowed = np.arange(self._num_actions)
                actions[env] = allowed[generator.integers(len(allowed))]
        return actions


class Sampled:
    """Samples each environment's action from the softmax of its logits.

    Args:
        seeds: one seed (a sequence of integers) per environment, each with its own generator.
        head_sizes: numbers of values of the integers that make up an action, each with a softmax
            of its own; None: an action is one integer, without an axis.
    """

    def __init__(
        self, seeds: Sequence[Sequence[int]], head_sizes: Sequence[int] | None = None
    ) -> None:
        self._generators = [np.random.default_rng(list(seed)) for seed in seeds]
        self._ends = None if head_sizes is None else np.cumsum(head_sizes)

    def describe(self) -> str:
        """A fixed text for the log."""
        return "actions sampled from the policy"

    def __call__(self, values: Floats) -> Ints:
        """Actions `[E]` from logits `[E, A]`; with heads `[E, heads]`, each from 0."""
        if self._ends is None:
            return self._sample(values)
        heads = np.split(values, self._ends[:-1], axis=1)
        return np.stack([self._sample(logits) for logits in heads], axis=1)

    def _sample(self, values: Floats) -> Ints:
        odds = np.exp(values - values.max(axis=1, keepdims=True), dtype=np.float64)
        mass = np.cumsum(odds, axis=1)
        points = np.array([generator.random() for generator in self._generators])
        actions: Ints = (mass <= (points * mass[:, -1])[:, None]).sum(axis=1)
        return actions


class GaussianNoise:
    """Adds Gaussian noise to actions and clips them to their bounds.

    Args:
        sigmas: `[E]`, standard deviations, in units of half the distance between the bounds.
        low: `[*action shape]`, the lower bounds.
        high: `[*action shape]`, the upper bounds.
        seeds: one seed (a sequence of integers) per environment, each with its own generator.
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

    def metrics(self) -> dict[str, float]:
        """The mean sigma, for the actor's metrics."""
        return {"sigma": float(self.sigmas.mean())}

    def __call__(self, values: Array) -> Array:
        """Noisy actions from greedy actions, `[E, *action shape]` each."""
        shape = self._half.shape
        noise = np.stack([generator.standard_normal(shape) for generator in self._generators])
        noise *= self.sigmas.reshape(-1, *(1,) * self._half.ndim) * self._half
        actions: Array = np.clip(values + noise, self._low, self._high).astype(values.dtype)
        return actions
