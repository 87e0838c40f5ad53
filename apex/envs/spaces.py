"""Convert gymnasium's spaces to an `EnvSpec`, and reject those that apex cannot use."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import gymnasium as gym
import msgspec
import numpy as np

from apex.data.observations import ACTION_MASK, OBSERVATION
from apex.data.schema import Array
from apex.envs.spec import ActionBounds, EnvSpec, ObservationPart
from apex.errors import EnvError

log = logging.getLogger("apex.envs")

Channels: TypeAlias = Literal["auto", "first", "last"]
MAX_PARTS = 24
"""Most arrays of an observation; a transition has two columns for each, a message 64 buffers."""
MAX_IMAGE_BYTES = 4 * 2**20 - 2**16
"""Largest image: its compressed block must be below LZ4's 4 MiB."""

FLATTENED = (gym.spaces.Discrete, gym.spaces.MultiDiscrete, gym.spaces.MultiBinary)
"""Plain observation spaces whose observations become vectors of zeros and ones."""


def env_spec(
    observation: gym.Space[Any],
    action: gym.Space[Any],
    env_id: str,
    frame_stack: int,
    *,
    squeeze: bool = False,
    masked: bool = False,
    channels: Channels = "auto",
    action_limit: float = 0.0,
) -> EnvSpec:
    """The spec of an environment with these spaces.

    Args:
        observation, action: the spaces of one environment.
        env_id: see `EnvSpec`.
        frame_stack: images per observation of the policy; 0 or 1 for other observations.
        squeeze: drop the first axis of each observation, which has a length of one.
        masked: whether `info["action_mask"]` says which actions are allowed.
        channels: which axis of an image has its channels; `auto`: see `channels_last`.
        action_limit: magnitude of a bound that an action of the space does not have; 0: none.

    Raises:
        EnvError: apex cannot use these spaces.
    """
    num_actions, bounds = _actions(action, env_id, action_limit)
    leaves = list(_leaves(observation))
    named = masked or [name for name, _ in leaves] != [""]
    parts = [
        observation_part(name, space, env_id, channels, num_actions, squeeze=squeeze)
        for name, space in leaves
    ]
    if masked:
        parts = [msgspec.structs.replace(p, name=p.name or OBSERVATION) for p in parts]
        parts.append(_mask(num_actions, env_id, {part.name for part in parts}))
    images = [part for part in parts if part.kind == "image"]
    if frame_stack > 1 and not images:
        raise EnvError(
            f"{env_id}: env.frame_stack = {frame_stack}: expected images (uint8, two or three "
            f"axes) to stack, got observations {'; '.join(part.text for part in parts)}; set it to "
            f"0, or wrap the environment with gymnasium.wrappers.FrameStackObservation(env, "
            f"{frame_stack})"
        )
    stack = (frame_stack or 1) if images else 0
    if named:
        _check_names(parts, env_id)
        return EnvSpec(env_id, (), "", stack, num_actions, bounds, tuple(parts))
    (part,) = parts
    last = part.channels_last if images else None
    return EnvSpec(env_id, part.shape, part.dtype, stack, num_actions, bounds, (), last)


def _mask(num_actions: int, env_id: str, taken: set[str]) -> ObservationPart:
    """The part for `info["action_mask"]`."""
    if not num_actions:
        raise EnvError(
            f"{env_id}: env.action_masks: expected discrete actions; set it to false, since a mask "
            "has one number for each of them"
        )
    if ACTION_MASK in taken:
        raise EnvError(
            f"{env_id}: action masks are in the observation's key '{ACTION_MASK}' and in info; "
            "set env.action_masks to false to use the former"
        )
    return ObservationPart(ACTION_MASK, "mask", (num_actions,), "uint8")


def _check_names(parts: Sequence[ObservationPart], env_id: str) -> None:
    names = [part.name for part in parts]
    if names == [ACTION_MASK]:
        raise EnvError(f"{env_id}: expected an observation beside the action mask")
    if len(set(names)) != len(names) or len(names) > MAX_PARTS or "" in names or not names:
        raise EnvError(
            f"{env_id}: expected 1 to {MAX_PARTS} arrays with different names in an observation, "
            f"got {len(names)}: {', '.join(names)}; wrap the environment with "
            "gymnasium.wrappers.FlattenObservation, or rename the keys of its Dict space"
        )


def _leaves(space: gym.Space[Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """The spaces inside nested Dict and Tuple spaces, with their keys joined by dots."""
    if isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)):
        for key, inner in _children(space):
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, space


def _children(space: gym.Space[Any]) -> Iterable[tuple[Any, gym.Space[Any]]]:
    return space.items() if isinstance(space, gym.spaces.Dict) else enumerate(space)  # type: ignore


def flat_observations(observation: Any, space: gym.Space[Any]) -> list[Any]:
    """The arrays of an observation, or of a batch of them, in the order of the spec's parts."""
    if not isinstance(space, (gym.spaces.Dict, gym.spaces.Tuple)):
        return [observation]
    return [
        array for key, inner in _children(space)
        for array in flat_observations(observation[key], inner)
    ]  # fmt: skip


def flat_spaces(space: gym.Space[Any]) -> list[gym.Space[Any]]:
    """The spaces inside nested Dict and Tuple spaces, in the order of the spec's parts."""
    return [inner for _, inner in _leaves(space)]


def observation_part(
    name: str,
    space: gym.Space[Any],
    env_id: str,
    channels: Channels,
    num_actions: int,
    *,
    squeeze: bool = False,
) -> ObservationPart:
    """The part of an observation that a space without inner spaces describes.

    Raises:
        EnvError: apex cannot use it.
    """
    where = f"{env_id}: observation{f' {name!r}' if name else ''}"
    if name == ACTION_MASK and num_actions and space.shape == (num_actions,):
        return ObservationPart(name, "mask", (num_actions,), "uint8")
    if name == ACTION_MASK:
        log.warning(
            "%s of shape %s is seen by the network but forbids nothing: %s",
            where, space.shape,
            f"a mask has one number for each of the {num_actions} actions" if num_actions
            else "only discrete actions can be masked",
        )  # fmt: skip
    if isinstance(space, gym.spaces.Discrete):
        return ObservationPart(name, "choices", (), "int32", (int(space.n),))
    if isinstance(space, gym.spaces.MultiDiscrete):
        choices = tuple(int(n) for n in space.nvec.ravel())
        return ObservationPart(name, "choices", space.nvec.shape, "int32", choices)
    if isinstance(space, gym.spaces.MultiBinary):
        return ObservationPart(
            name, "choices", tuple(space.shape), "uint8", (2,) * math.prod(space.shape)
        )
    if not isinstance(space, gym.spaces.Box):
        raise EnvError(f"{where}: {_remedy(name, space)}")
    return _box_part(name, space, where, channels, squeeze=squeeze)


def _remedy(name: str, space: gym.Space[Any]) -> str:
    expected = "expected Box, Discrete, MultiDiscrete, MultiBinary, Dict or Tuple"
    if not name:
        remedy = "gymnasium.wrappers.FlattenObservation, which makes numbers of it"
        return f"{expected}, got {space}; wrap the environment with {remedy}"
    key = name.partition(".")[0]
    return (
        f"{expected}, got {space}; wrap the environment with "
        f"gymnasium.wrappers.FilterObservation(env, KEYS), with all keys but '{key}', or turn it "
        "into numbers with gymnasium.wrappers.TransformObservation"
    )


def _box_part(
    name: str, space: gym.spaces.Box, where: str, channels: Channels, *, squeeze: bool
) -> ObservationPart:
    shape = tuple(space.shape[1:] if squeeze else space.shape)
    if not shape and not name:
        raise EnvError(
            f"{where}: expected at least one axis, got scalars ({space}); "
            "wrap the environment with gymnasium.wrappers.ReshapeObservation(env, (1,))"
        )
    dtype = "uint8" if space.dtype in (np.uint8, np.bool_) else "float32"
    if dtype != "uint8" or len(shape) < 2:
        return ObservationPart(name, "vector", shape, dtype)
    if len(shape) > 3:
        raise EnvError(f"{where}: expected images with 2 or 3 axes, got shape {shape}; reshape it")
    if math.prod(shape) > MAX_IMAGE_BYTES:
        raise EnvError(
            f"{where}: expected images of at most {MAX_IMAGE_BYTES / 2**20:.0f} MiB, got shape "
            f"{shape}; wrap the environment with gymnasium.wrappers.ResizeObservation(env, "
            "(84, 84))"
        )
    last = channels == "last" or (channels == "auto" and channels_last(shape, where))
    return ObservationPart(name, "image", shape, dtype, (), len(shape) == 3 and last)


def channels_last(shape: tuple[int, ...], where: str) -> bool:
    """Whether the last axis of an image `[a, b, c]` has its channels, rather than the first.

    Height and width are the two axes of equal length, if exactly two are equal; else the channels
    are the shorter of the first and the last axis. The log says so where this may be wrong.
    """
    if len(shape) < 3:
        return False
    first, middle, last = shape
    if first == middle != last:
        chosen = True
    elif middle == last != first:
        chosen = False
    else:
        chosen = last <= first
    number = last if chosen else first
    is_square = middle in (first, last)
    if number not in (1, 3, 4) and not (is_square and number < middle):
        log.warning(
            "%s: images %s are taken to have %d channels on the %s axis; if that is wrong, set "
            "env.image_channels to '%s'",
            where, shape, number, "last" if chosen else "first", "first" if chosen else "last",
        )  # fmt: skip
    return chosen


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


def _actions(space: gym.Space[Any], env_id: str, limit: float) -> tuple[int, ActionBounds | None]:
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
    return 0, _bounds("float32", *_finite_sides(space, env_id, limit))


def _finite_sides(space: gym.spaces.Box, env_id: str, limit: float) -> tuple[Array, Array]:
    """Lower and upper bounds of a Box; a missing one is -limit or limit."""
    with np.errstate(over="ignore"):
        low, high = space.low.astype(np.float32), space.high.astype(np.float32)
        if limit:
            low = np.where(np.isinf(low), np.float32(-limit), low)
            high = np.where(np.isinf(high), np.float32(limit), high)
        widths = high - low
    if not (
        space.shape and (widths >= 0).all() and (widths > 0).any() and np.isfinite(widths).all()
    ):
        raise EnvError(
            f"{env_id}: expected actions with a finite lower and upper bound, got {space}; give "
            "its Box finite bounds, or set env.action_limit: a missing bound becomes -limit or "
            f"limit (now {limit:g}), which must be beyond the other bound; or wrap the environment "
            "with gymnasium.wrappers.TransformAction(env, convert, gymnasium.spaces.Box(-1, 1, "
            f"{space.shape or (1,)})), where convert(action) returns what the environment takes"
        )
    return low, high


def _bounds(dtype: Literal["float32", "int64"], low: Array, high: Array) -> ActionBounds:
    first, last = (tuple(side.astype(np.float64).ravel().tolist()) for side in (low, high))
    return ActionBounds(dtype, low.shape, first, last)
