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
        self._shape, self._dtype = self._space.shape, self._space.dtype

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
        if self._is_box:
            return _checked_box(observation, self._shape, self._dtype, "")
        return _checked(observation, self._space, "")


def _checked(observation: Any, space: gym.Space[Any], where: str) -> Any:
    """An observation of a space whose Box parts have the dtypes of the space."""
    if isinstance(space, gym.spaces.Box):
        return _checked_box(observation, space.shape, space.dtype, where)
    if isinstance(space, gym.spaces.Dict):
        if not isinstance(observation, dict) or observation.keys() != space.spaces.keys():
            found = sorted(observation) if isinstance(observation, dict) else kind_of(observation)
            raise MisbehavedError(
                f"returned an observation{where} with the keys {found}, but its observation_space "
                f"has {sorted(space.spaces)}; make them agree"
            )
        return {k: _checked(observation[k], inner, f"{where}[{k!r}]") for k, inner in space.items()}
    if isinstance(space, gym.spaces.Tuple):
        if not isinstance(observation, tuple) or len(observation) != len(space):
            raise MisbehavedError(
                f"returned an observation{where} that is {kind_of(observation)}, but its "
                f"observation_space is a tuple of {len(space)}; make them agree"
            )
        parts = zip(observation, space.spaces)
        return tuple(_checked(o, inner, f"{where}[{k}]") for k, (o, inner) in enumerate(parts))
    if not space.contains(observation):
        raise MisbehavedError(
            f"returned the observation{where} {observation}, but its observation_space is "
            f"{space}; make them agree"
        )
    return observation


def _checked_box(observation: Any, shape: Any, dtype: Any, where: str) -> Any:
    """An array with the dtype of its space."""
    array: Array = np.asarray(observation)
    if array.shape != shape:
        raise MisbehavedError(
            f"returned an observation{where} of shape {array.shape}, but its observation_space has "
            f"the shape {shape}; make them agree"
        )
    if array.dtype == dtype:
        return array
    if not fits(array, dtype):
        raise MisbehavedError(
            f"returned an observation{where} of {array.dtype}, which its observation_space of "
            f"{dtype} cannot hold; scale it and return .astype(np.{dtype}), or change the space"
        )
    return array.astype(dtype)


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
