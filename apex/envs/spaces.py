"""Convert gymnasium's spaces to an `EnvSpec`, and reject those that apex cannot use."""

from __future__ import annotations

from typing import Any, Literal

import gymnasium as gym
import numpy as np

from apex.data.schema import Array
from apex.envs.spec import ActionBounds, EnvSpec
from apex.errors import EnvError

FLATTENED = (gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
"""Observation spaces whose observations become vectors of zeros and ones."""


def env_spec(
    observation: gym.Space[Any],
    action: gym.Space[Any],
    env_id: str,
    frame_stack: int,
    *,
    squeeze: bool = False,
) -> EnvSpec:
    """The spec of an environment with these spaces.

    Args:
        observation, action: the spaces of one environment.
        env_id: see `EnvSpec`.
        frame_stack: images per observation of the policy; 0 or 1 for other observations.
        squeeze: drop the first axis of each observation, which has a length of one.

    Raises:
        EnvError: apex cannot use these spaces.
    """
    if not isinstance(observation, gym.spaces.Box):
        raise EnvError(
            f"{env_id}: expected a Box observation space, got {observation}; wrap the environment "
            "with gymnasium.wrappers.FlattenObservation"
        )
    shape = tuple(observation.shape[1:] if squeeze else observation.shape)
    if not shape:
        raise EnvError(
            f"{env_id}: expected observations with at least one axis, got scalars ({observation}); "
            "wrap the environment with gymnasium.wrappers.ReshapeObservation(env, (1,))"
        )
    dtype = "uint8" if observation.dtype in (np.uint8, np.bool_) else "float32"
    is_image = dtype == "uint8" and len(shape) >= 2
    if is_image and len(shape) > 3:
        raise EnvError(
            f"{env_id}: expected images with 2 or 3 axes, got shape {shape}; reshape them"
        )
    if frame_stack > 1 and not is_image:
        raise EnvError(
            f"{env_id}: env.frame_stack = {frame_stack}: expected images (uint8, two or three "
            f"axes) to stack, got observations {dtype} {shape}; set it to 0, or wrap the "
            f"environment with gymnasium.wrappers.FrameStackObservation(env, {frame_stack})"
        )
    stack = (frame_stack or 1) if is_image else 0
    num_actions, bounds = _actions(action, env_id)
    return EnvSpec(env_id, shape, dtype, stack, num_actions, bounds)


def to_env_actions(actions: Array, space: gym.Space[Any]) -> Array:
    """Convert an algorithm's actions to the environment's, in a copy, as some modify their input.

    Args:
        actions: `[E, *action shape]`; discrete actions count from 0.
        space: action space of one environment.
    """
    taken: Array = actions.copy()
    if isinstance(space, gym.spaces.Discrete):
        taken += int(space.start)
    elif isinstance(space, gym.spaces.Box):  # float32 may have rounded a bound outwards
        taken = np.clip(taken.astype(space.dtype), space.low, space.high)
    return taken


def _actions(space: gym.Space[Any], env_id: str) -> tuple[int, ActionBounds | None]:
    """The number of discrete actions, or 0 and the bounds of other actions."""
    if isinstance(space, gym.spaces.Discrete):
        return int(space.n), None
    if isinstance(space, gym.spaces.MultiDiscrete):
        return 0, _bounds("int64", space.start, space.start + space.nvec - 1)
    if isinstance(space, gym.spaces.MultiBinary):
        return 0, _bounds("int64", np.zeros(space.shape), np.ones(space.shape))
    if not isinstance(space, gym.spaces.Box) or np.dtype(space.dtype).kind != "f":
        raise EnvError(
            f"{env_id}: expected an action space Discrete, MultiDiscrete, MultiBinary or Box of "
            f"floats, got {space}; give it another with gymnasium.wrappers.TransformAction(env, "
            "convert, gymnasium.spaces.MultiDiscrete([…])), where convert(action) returns what "
            "the environment takes"
        )
    with np.errstate(over="ignore"):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        widths = high - low
    if not (space.shape and (widths > 0).all() and np.isfinite(widths).all()):
        raise EnvError(
            f"{env_id}: expected actions with a finite lower and upper bound, got {space}; give "
            "its Box finite bounds, or wrap the environment with "
            f"gymnasium.wrappers.TransformAction(env, convert, gymnasium.spaces.Box(-1, 1, "
            f"{space.shape or (1,)})), where convert(action) returns what the environment takes"
        )
    return 0, _bounds("float32", low, high)


def _bounds(dtype: Literal["float32", "int64"], low: Array, high: Array) -> ActionBounds:
    first, last = (tuple(side.astype(np.float64).ravel().tolist()) for side in (low, high))
    return ActionBounds(dtype, low.shape, first, last)
