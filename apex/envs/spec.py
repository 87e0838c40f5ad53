"""Observation and action specification of an environment, and the result of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

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


class EnvSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Observations and actions of an environment: what an algorithm needs to build its network.

    Args:
        env_id: gymnasium id, for messages.
        observation_shape: shape of one observation of the environment; for images, of one frame.
        observation_dtype: NumPy name of the dtype.
        frame_stack: consecutive frames in one input of the policy; 0 for observations that are
            not images, which are stored as array columns.
        num_actions: number of discrete actions, which are 0 to `num_actions` - 1; 0 if
            `action_bounds` is set.
        action_bounds: bounds of actions that are arrays of numbers; None: actions are discrete.
    """

    env_id: str
    observation_shape: tuple[int, ...]
    observation_dtype: str
    frame_stack: int
    num_actions: int
    action_bounds: ActionBounds | None = None

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

    def random_actions(self, count: int, rng: np.random.Generator) -> Array:
        """Random actions `[count, *action shape]`, uniform between the bounds."""
        bounds = self.action_bounds
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
        """Shape of the policy's observation of one environment."""
        if self.frame_stack:
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
        observations: `[E, *observation_shape]`.
        rewards: `[E] float64`, neither clipped nor scaled.
        terminated: the episode ended; the value after its last step is 0.
        truncated: the episode was cut off; bootstrap from its last observation.
        life_lost: learn as if terminated, although the episode continues.
        metrics: measured scalars of `info`, `[E] float64` by name; NaN where there is none.
    """

    observations: Array
    rewards: npt.NDArray[np.float64]
    terminated: npt.NDArray[np.bool_]
    truncated: npt.NDArray[np.bool_]
    life_lost: npt.NDArray[np.bool_]
    metrics: Mapping[str, npt.NDArray[np.float64]] = field(default_factory=dict)
