"""Observation and action specification of an environment, and the result of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from apex.data.observations import Observations
from apex.data.schema import Array, Column


class ActionBounds(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of an action that is an array of numbers: one inclusive range per number.

    Args:
        dtype: `float32` (gymnasium's Box) or `int64` (MultiDiscrete, MultiBinary).
        shape: shape of one action.
        low: lower bound of each number, in row-major order.
        high: upper bound of each number, likewise.
    """

    dtype: Literal["float32", "int64"]
    shape: tuple[int, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    def arrays(self) -> tuple[Array, Array]:
        """Lower and upper bounds, `[*shape]` of `dtype` each."""
        low, high = (
            np.array(side, self.dtype).reshape(self.shape) for side in (self.low, self.high)
        )
        return low, high


ActionKind: TypeAlias = Literal["discrete", "continuous", "multi-discrete"]
PartKind: TypeAlias = Literal["image", "vector", "choices", "mask"]


class ObservationPart(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One array of an observation.

    Args:
        name: its key; keys of nested spaces are joined by dots; empty for a plain observation.
        kind: `image` (uint8), `vector` (numbers), `choices` (integers that count from 0), or
            `mask` (1 for each discrete action that is allowed, else 0).
        shape: shape of one array; for an image, of one frame.
        dtype: NumPy name of the dtype.
        choices: numbers of values of the elements of `choices`, in row-major order.
        channels_last: whether the last axis of an image of three axes has its channels.
    """

    name: str
    kind: PartKind
    shape: tuple[int, ...]
    dtype: str
    choices: tuple[int, ...] = ()
    channels_last: bool = False

    def invalid(self, values: Array) -> npt.NDArray[np.bool_]:
        """Which of the arrays `[..., *shape]` have choices that do not exist, or allow no action.

        A network cannot read such an array, which may come from another program: an embedding has
        no row for it, and nothing can be chosen.
        """
        axes = tuple(range(-len(self.shape), 0))
        if self.kind == "choices":
            counts = np.array(self.choices).reshape(self.shape)
            return np.asarray(((values < 0) | (values >= counts)).any(axis=axes))
        if self.kind == "mask":
            return np.asarray((values == 0).all(axis=axes))
        return np.full(values.shape[: values.ndim - len(self.shape)], False)

    @property
    def text(self) -> str:
        """A description for messages."""
        named = f"{self.name}: " if self.name else ""
        return f"{named}{self.kind} {self.dtype} {self.shape}"


class EnvSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Observations and actions of an environment: what an algorithm needs to build its network.

    Args:
        env_id: gymnasium id, for messages.
        observation_shape: shape of one observation of the environment; for images, of one frame;
            empty if there are `parts`.
        observation_dtype: NumPy name of the dtype; empty if there are `parts`.
        frame_stack: consecutive frames of each image in one input of the policy; 0 if there are
            no images. Other parts are stored as array columns.
        num_actions: number of discrete actions, which are 0 to `num_actions` - 1; 0 if
            `action_bounds` is set.
        action_bounds: bounds of actions that are arrays of numbers; None: actions are discrete.
        parts: the arrays of an observation that is a dictionary; empty: it is one array.
        channels_last: whether the last axis of an image of three axes has its channels; None: it
            has them if it is at most as long as the first, as in apex 0.1.
    """

    env_id: str
    observation_shape: tuple[int, ...]
    observation_dtype: str
    frame_stack: int
    num_actions: int
    action_bounds: ActionBounds | None = None
    parts: tuple[ObservationPart, ...] = ()
    channels_last: bool | None = None

    @property
    def all_parts(self) -> tuple[ObservationPart, ...]:
        """The parts of an observation; a plain one has one part, whose name is empty."""
        if self.parts:
            return self.parts
        shape = self.observation_shape
        last = self.channels_last
        if last is None:
            last = len(shape) == 3 and shape[-1] <= shape[0]
        kind: PartKind = "image" if self.frame_stack else "vector"
        return (ObservationPart("", kind, shape, self.observation_dtype, (), last),)

    def of_part(self, part: ObservationPart) -> EnvSpec:
        """The spec of an environment whose observations are this part alone."""
        is_image = part.kind == "image"
        return msgspec.structs.replace(
            self,
            observation_shape=part.shape,
            observation_dtype=part.dtype,
            frame_stack=self.frame_stack if is_image else 0,
            parts=(),
            channels_last=part.channels_last if is_image else None,
        )

    def differences(self, other: EnvSpec) -> list[str]:
        """How this environment's observations and actions differ from those of another.

        Runs of apex 0.1 have None as `channels_last`; it equals the value that it stands for.
        """
        compared = {
            name: (getattr(self, name), getattr(other, name))
            for name in self.__struct_fields__
            if name not in ("env_id", "channels_last")
        }
        if not (self.parts or other.parts):
            lasts = (self.all_parts[0].channels_last, other.all_parts[0].channels_last)
            compared["channels_last"] = lasts
        return [
            f"{name} {own} instead of {others}"
            for name, (own, others) in compared.items()
            if own != others
        ]

    @property
    def images(self) -> tuple[ObservationPart, ...]:
        """The parts that are images: each is stored once for each step and stacked when read."""
        return tuple(part for part in self.all_parts if part.kind == "image")

    @property
    def arrays(self) -> tuple[ObservationPart, ...]:
        """The parts that are stored as columns."""
        return tuple(part for part in self.all_parts if part.kind != "image")

    @property
    def has_action_mask(self) -> bool:
        """Whether a part of the observation says which actions are allowed."""
        return any(part.kind == "mask" for part in self.parts)

    @property
    def observations_text(self) -> str:
        """Description of the observations, for messages."""
        if not self.parts:
            return f"{self.policy_shape} {self.observation_dtype}"
        return "; ".join(part.text for part in self.parts)

    def zero_observations(self, count: int) -> Observations:
        """Observations of zeros, with all actions allowed: `[count, ...]` each."""
        if not self.parts:
            return np.zeros((count, *self.observation_shape), self.observation_dtype)
        fill = {part.name: int(part.kind == "mask") for part in self.parts}
        return {p.name: np.full((count, *p.shape), fill[p.name], p.dtype) for p in self.parts}

    @property
    def action_kind(self) -> ActionKind:
        """Kind of the action space."""
        if self.action_bounds is None:
            return "discrete"
        return "continuous" if self.action_bounds.dtype == "float32" else "multi-discrete"

    @property
    def action_column(self) -> Column:
        """Column of an action in an item; integers are int32 here, int64 for environments."""
        if self.action_bounds is None:
            return Column("action", "int32")
        dtype = "float32" if self.action_kind == "continuous" else "int32"
        return Column("action", dtype, self.action_bounds.shape)

    @property
    def actions_text(self) -> str:
        """Description of the action space, for messages."""
        bounds = self.action_bounds
        if bounds is None:
            return f"actions from 0 to {self.num_actions - 1}"
        return f"{self.action_kind} actions {bounds.shape}"

    def no_actions(self, count: int) -> Array:
        """Zeros `[count, *action shape]` with the dtype of the environment's actions."""
        bounds = self.action_bounds
        if bounds is None:
            return np.zeros(count, dtype=np.int64)
        return np.zeros((count, *bounds.shape), dtype=bounds.dtype)

    @property
    def head_sizes(self) -> tuple[int, ...]:
        """Number of values of each integer of an action: one integer for discrete actions."""
        if self.action_bounds is None:
            return (self.num_actions,)
        low, high = self.action_bounds.arrays()
        return tuple((high - low + 1).astype(int).ravel().tolist())

    def random_actions(
        self, count: int, rng: np.random.Generator, allowed: Array | None = None
    ) -> Array:
        """Random actions `[count, *action shape]`, uniform between the bounds.

        Args:
            count: number of environments.
            rng: source of the random numbers.
            allowed: `[count, num_actions]`, not 0 where a discrete action is allowed; None: all.
        """
        bounds = self.action_bounds
        if bounds is None and allowed is not None:
            return np.array([rng.choice(np.flatnonzero(row)) for row in allowed])
        if bounds is None:
            return rng.integers(self.num_actions, size=count)
        low, high = bounds.arrays()
        if bounds.dtype == "int64":
            return rng.integers(low, high + 1, size=(count, *bounds.shape))
        return rng.uniform(low, high, size=(count, *bounds.shape)).astype(np.float32)

    def bad_actions(self, actions: Array) -> npt.NDArray[np.bool_]:
        """Mask `[...]` of the invalid ones among actions `[..., *action shape]`."""
        bounds = self.action_bounds
        if bounds is None:
            return (actions < 0) | (actions >= self.num_actions)
        low, high = bounds.arrays()
        good = (actions >= low) & (actions <= high)
        numbers = tuple(range(-len(bounds.shape), 0))
        bad: npt.NDArray[np.bool_] = np.logical_not(good.all(axis=numbers))
        return bad

    @property
    def policy_shape(self) -> tuple[int, ...]:
        """Shape of the policy's plain observation of one environment."""
        if self.frame_stack and not self.parts:
            return (self.frame_stack, *self.observation_shape)
        return self.observation_shape


MAX_REWARD = 1e30
"""Largest magnitude of a reward; sums of such rewards fit a float32."""


def good_rewards(rewards: npt.NDArray[np.float64]) -> bool:
    """Whether all rewards are numbers within ±`MAX_REWARD`."""
    return bool((np.abs(rewards) <= MAX_REWARD).all())


@dataclass(frozen=True)
class StepResult:
    """Result of a step of E environments; `[E]` each.

    Args:
        observations: `[E, *observation_shape]`, or by name for an observation of parts.
        rewards: `[E] float64`, neither clipped nor scaled.
        terminated: the episode ended; the value after its last step is 0.
        truncated: the episode was cut off; bootstrap from its last observation.
        life_lost: learn as if terminated, although the episode continues.
        metrics: measured scalars of `info`, `[E] float64` by name; NaN where there is none.
    """

    observations: Observations
    rewards: npt.NDArray[np.float64]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    life_lost: npt.NDArray[np.bool_]
    metrics: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
