"""Check and convert the arrays of a vector environment's observations."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import numpy as np

from apex.data.schema import Array
from apex.envs.env_checks import MisbehavedError
from apex.envs.spec import ObservationPart

log = logging.getLogger("apex.envs")


class CheckedPart:
    """Checks and converts one array of the observations.

    Args:
        part: its description.
        space: the space that it comes from.
        num_envs: E.
        env_id: the environment's name in messages.
    """

    def __init__(
        self, part: ObservationPart, space: gym.Space[Any], num_envs: int, env_id: str
    ) -> None:
        self._env_id = env_id
        self._where = f" '{part.name}'" if part.name else ""
        self._shape = (num_envs, *part.shape)
        self._dtype = np.dtype(part.dtype)
        self._is_image = part.dtype == "uint8" and part.kind in ("image", "vector")
        self._start = _start(space) if part.kind == "choices" else None
        self._bounds = _finite_bounds(space) if part.kind != "mask" else None

    def checked(self, observations: Any, step: int) -> Array:
        """The array with the part's dtype. Raises `MisbehavedError`."""
        array: Array = np.asarray(observations)
        if array.shape != self._shape:
            raise MisbehavedError(
                f"returned observations{self._where} {array.shape}, expected {self._shape}"
            )
        if self._start is not None:
            array = array - self._start
        if array.dtype != self._dtype:
            # Booleans become the darkest and the brightest pixel of an image.
            scaled = array.dtype == np.bool_ and self._is_image
            array = array * np.uint8(255) if scaled else array.astype(self._dtype)
        if self._dtype.kind == "f" and not np.isfinite(array).all():
            raise MisbehavedError(
                f"returned an observation{self._where} that is not finite; look for a division by "
                "0 or a diverging state, and terminate the episode before it"
            )
        if self._bounds is not None:
            self._warn_out_of_bounds(array, *self._bounds, step)
        return array

    def _warn_out_of_bounds(self, observations: Array, low: Array, high: Array, step: int) -> None:
        """Warn once that observations are outside their space; training uses them all the same."""
        beyond = (observations < low) | (observations > high)
        if not beyond.any():
            return
        self._bounds = None
        env, *element = (int(axis[0]) for axis in np.nonzero(beyond))
        log.warning(
            "%s: step %d: element %s of an observation%s is %g, outside its observation_space "
            "(%g to %g); if the environment is yours, widen the space or clip the observation. "
            "Training uses the observation as it is; this warning is not repeated",
            self._env_id, step, element, self._where, observations[env][tuple(element)],
            low[tuple(element)], high[tuple(element)],
        )  # fmt: skip


def _start(space: gym.Space[Any]) -> Any:
    """The first value of each element of a discrete space."""
    return getattr(space, "start", 0) if not isinstance(space, gym.spaces.MultiBinary) else 0


def _finite_bounds(space: gym.Space[Any]) -> tuple[Array, Array] | None:
    """Bounds of observations, with some slack; None if no value of their type is outside."""
    if not isinstance(space, gym.spaces.Box) or space.dtype is None or space.dtype.kind not in "fi":
        return None
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low) | np.isfinite(high)).any():
        return None
    return low - 1e-5 * np.maximum(1.0, np.abs(low)), high + 1e-5 * np.maximum(1.0, np.abs(high))
