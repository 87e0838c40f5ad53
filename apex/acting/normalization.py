"""Moments of observations and returns, collected where environments step. Imports no torch."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apex.config.sections import EnvConfig
from apex.data.observations import Observations, column_name, count, to_columns
from apex.data.schema import Array
from apex.envs.spec import EnvSpec
from apex.errors import ConfigError
from apex.ops.moments import Moments

log = logging.getLogger("apex.acting")

RETURN = "discounted_return"
"""Key of the statistic of discounted returns; those of observations have the names of columns."""
MOST_NUMBERS = 2**17
"""Numbers of one part of an observation: as float64 they fill a frame to `learner.params`."""
WAITING_STEPS, WAITING_NUMBERS = 64, 2**16
"""Steps, or numbers, that wait until their moments are computed at once."""

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Normalization:
    """What a run normalises.

    Args:
        observations: shape of each normalised part of an observation, by the statistic's key.
        rewards: whether rewards are divided by the standard deviation of discounted returns.
        discount: gamma of these returns, per environment step.
    """

    observations: Mapping[str, tuple[int, ...]]
    rewards: bool
    discount: float

    @property
    def sizes(self) -> dict[str, int]:
        """Numbers of each statistic, by its key."""
        sizes = {key: math.prod(shape) for key, shape in self.observations.items()}
        return {**sizes, RETURN: 1} if self.rewards else sizes

    @classmethod
    def of(cls, env: EnvConfig, spec: EnvSpec, discount: float) -> Normalization | None:
        """What the settings say; None: nothing.

        Raises:
            ConfigError: observations have no part that can be normalised, or one that is too large.
        """
        if not (env.normalize_observations or env.normalize_rewards):
            return None
        shapes = _vectors(spec) if env.normalize_observations else {}
        if env.normalize_observations and not shapes:
            raise ConfigError(
                f"env.normalize_observations: {spec.env_id} has no vector of numbers to normalise "
                f"(its observations are {spec.observations_text}; images are scaled by 1/255 in "
                "any case); set it to false"
            )
        for key, shape in shapes.items():
            if math.prod(shape) > MOST_NUMBERS:
                raise ConfigError(
                    f"env.normalize_observations: {key} of {spec.env_id} has {math.prod(shape)} "
                    f"numbers, at most {MOST_NUMBERS} can be normalised; normalise it in the "
                    "environment, or make it an image"
                )
        return cls(shapes, env.normalize_rewards, discount)


def _vectors(spec: EnvSpec) -> dict[str, tuple[int, ...]]:
    """Shape of each part of an observation that is a vector of numbers, by its key."""
    return {
        column_name(part.name): part.shape
        for part in spec.arrays
        if part.kind == "vector" and np.dtype(part.dtype).kind == "f"
    }


class MomentCollector:
    """The moments of rows of numbers since they were last taken.

    Args:
        sizes: numbers in a row of each statistic, by its key.
    """

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self._moments = {key: Moments.none(size) for key, size in sizes.items()}
        self._waiting: dict[str, list[Array]] = {key: [] for key in sizes}
        """Rows whose moments are not computed yet: many at once take less time."""

    def add(self, key: str, rows: Array) -> None:
        """Add rows, `[B, ...]`; they are copied."""
        if not len(rows):
            return
        waiting = self._waiting[key]
        waiting.append(rows.reshape(len(rows), -1).copy())
        steps = len(waiting)
        if steps >= WAITING_STEPS or steps * rows.size >= WAITING_NUMBERS:
            self._compute(key)

    def _compute(self, key: str) -> None:
        rows = np.concatenate(self._waiting[key])
        self._waiting[key].clear()
        with np.errstate(over="ignore", invalid="ignore"):
            merged = self._moments[key].merged(Moments.of(rows))
        if merged.valid:
            self._moments[key] = merged
        else:
            log.warning("%s: numbers beyond 1e100 are left out of its statistics", key)

    def take(self) -> dict[str, Moments]:
        """Return the moments by key, without those of no rows, and begin again."""
        for key, waiting in self._waiting.items():
            if waiting:
                self._compute(key)
        taken = {key: moments for key, moments in self._moments.items() if moments.count}
        for key, moments in taken.items():
            self._moments[key] = Moments.none(len(moments.mean))
        return taken


class MomentRecorder:
    """Adds what E environments return to a collector: each observation and reward once.

    Args:
        normalization: what the run normalises.
        collector: receives the observations and the discounted returns; agents may share it.
    """

    def __init__(self, normalization: Normalization, collector: MomentCollector) -> None:
        self._normalization, self._collector = normalization, collector
        self._returns = np.zeros(0)

    def begin(self, observations: Observations) -> None:
        """Add first observations of E environments; episodes begin in all of them."""
        self._returns = np.zeros(count(observations))
        self._add(observations)

    def observe(
        self, observations: Observations, rewards: Array, ended: Bools, ignored: Bools
    ) -> None:
        """Add the results of a step.

        Args:
            observations: of E environments.
            rewards: `[E]`, as learners see them.
            ended: `[E]`, the episode ended with this step.
            ignored: `[E]`, the step began an episode, so its reward does not count.
        """
        self._add(observations)
        if self._normalization.rewards:
            returns = self._normalization.discount * self._returns + rewards
            counted = returns if not ignored.any() else returns[~ignored]
            self._collector.add(RETURN, counted)
            self._returns = np.where(ended | ignored, 0.0, returns)

    def _add(self, observations: Observations) -> None:
        if self._normalization.observations:
            columns = to_columns(observations)
            for key in self._normalization.observations:
                self._collector.add(key, columns[key])
