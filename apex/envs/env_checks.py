"""Check that an environment returns what gymnasium's interface requires."""

from __future__ import annotations

import numbers
from typing import Any

import gymnasium as gym
import numpy as np

from apex.data.schema import Array

STEP_RETURNS = "(observation, reward, terminated, truncated, info)"
RESET_RETURNS = "(observation, info)"
INTERFACE = (
    f"step(action) must return {STEP_RETURNS}, reset(*, seed=None, options=None) {RESET_RETURNS}, "
    "and actions and observations must be in their spaces"
)


class MisbehavedError(Exception):
    """An environment returned what gymnasium's interface does not allow."""


class Checked(gym.Wrapper[Any, Any, Any, Any]):
    """Raises an error with a remedy if an environment returns an invalid value.

    It checks one environment, before its values are batched with those of others.

    Args:
        env: the user's environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._space = env.observation_space
        self._is_box = isinstance(self._space, gym.spaces.Box)
        self._shape, self._dtype = self._space.shape, np.dtype(self._space.dtype)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """As in gymnasium. Raises `MisbehavedError`."""
        returned = self.env.reset(**kwargs)
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise MisbehavedError(
                f"returned {kind_of(returned)}; reset must return {RESET_RETURNS}"
            )
        observation, info = returned
        return self._checked(observation, info), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As in gymnasium. Raises `MisbehavedError`."""
        returned = self.env.step(action)
        if not (isinstance(returned, tuple) and len(returned) == 5):
            old = ", as old gym did" if isinstance(returned, tuple) and len(returned) == 4 else ""
            raise MisbehavedError(
                f"returned {kind_of(returned)}{old}; step must return {STEP_RETURNS}"
            )
        observation, reward, terminated, truncated, info = returned
        if type(reward) is not float and not _is_number(reward):
            raise MisbehavedError(
                f"returned a reward that is {kind_of(reward)}; return one number, float(reward)"
            )
        for name, flag in (("terminated", terminated), ("truncated", truncated)):
            if not isinstance(flag, (bool, np.bool_, int)) and getattr(flag, "shape", None) != ():
                raise MisbehavedError(
                    f"returned a `{name}` that is {kind_of(flag)}; return True or False"
                )
        return self._checked(observation, info), reward, bool(terminated), bool(truncated), info

    def _checked(self, observation: Any, info: Any) -> Any:
        """The observation, converted to the dtype of its space."""
        if not isinstance(info, dict):
            raise MisbehavedError(f"returned an info that is {kind_of(info)}; return a dict")
        if not self._is_box:
            if not self._space.contains(observation):
                raise MisbehavedError(
                    f"returned the observation {observation}, but its observation_space is "
                    f"{self._space}; make them agree"
                )
            return observation
        array: Array = np.asarray(observation)
        if array.shape != self._shape:
            raise MisbehavedError(
                f"returned an observation of shape {array.shape}, but its observation_space has "
                f"the shape {self._shape}; make them agree"
            )
        if array.dtype == self._dtype:
            return array
        if not fits(array, self._dtype):
            raise MisbehavedError(
                f"returned an observation of {array.dtype}, which its observation_space of "
                f"{self._dtype} cannot hold; scale it and return .astype(np.{self._dtype}), or "
                "change the space"
            )
        return array.astype(self._dtype)


def _is_number(reward: Any) -> bool:
    return isinstance(reward, numbers.Real) or getattr(reward, "shape", None) == ()


def fits(array: Array, dtype: np.dtype[Any]) -> bool:
    """Whether an array converts to `dtype` with no loss but of a float's precision."""
    if array.dtype.kind not in "biuf" or (array.dtype.kind == "f" and dtype.kind != "f"):
        return False
    if dtype.kind == "f" or np.can_cast(array.dtype, dtype) or not array.size:
        return True
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return bool(array.min() >= low and array.max() <= high)


def kind_of(value: Any) -> str:
    """Describe the type of a value."""
    if isinstance(value, tuple):
        return f"a tuple of {len(value)}"
    if isinstance(value, np.ndarray):
        return f"an array of shape {value.shape}"
    return f"a {type(value).__name__}" if value is not None else "None"
