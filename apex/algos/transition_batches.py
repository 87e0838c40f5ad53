"""Base class of algorithms that learn from n-step transitions: items and batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from apex.acting.observation_columns import (
    PARTS_RULE,
    forbidden_actions,
    frames_schema,
    invalid_observations,
    observation_schema,
)
from apex.acting.transition_accumulator import NStepAccumulator
from apex.algos.base import Algorithm
from apex.algos.batches import PackedTransitions, Transitions, joined
from apex.algos.optimization import OptimizerConfig
from apex.config.sections import PositiveInt, UnitFloat
from apex.data.chunks import Items
from apex.data.observations import ACTION_MASK, column_name
from apex.data.schema import LEARNER_STEP, Array, Arrays, Column, Schema
from apex.errors import CorruptItemsError

Q_VALUE, MAX_Q = "q_value", "max_q"
"""Extra outputs of a policy, `[E]` each: the value of the chosen action, and the largest value."""


class TransitionAlgorithm(Algorithm):
    """An algorithm whose items are n-step transitions."""

    class Config(OptimizerConfig, frozen=True):
        """The part of an `[algorithm]` section about transitions and their sampling weights."""

        n_step: PositiveInt = 3
        """Environment steps whose rewards are summed in one transition."""
        discount: UnitFloat = 0.99
        """Discount factor gamma per environment step."""
        importance_sampling_exponent: UnitFloat = 0.4
        """beta: how far importance weights correct the bias of prioritized sampling; 0: not at
        all, 1: fully."""
        target_update_period: PositiveInt = 2500
        """Learner steps between copies of the online network to the target network."""
        conv: tuple[tuple[PositiveInt, PositiveInt, PositiveInt], ...] = (
            (32, 8, 4),
            (64, 4, 2),
            (64, 3, 1),
        )
        """Output channels, kernel size and stride (pixels) of each convolution; unused without
        images."""
        conv_by_part: dict[str, tuple[tuple[PositiveInt, PositiveInt, PositiveInt], ...]] = (
            msgspec.field(default_factory=dict)
        )
        """Convolutions of some images of an observation with named parts, by name; the others have
        `conv`."""
        standardize_frames: bool = False
        """Normalise each stack of frames to mean 0 and variance 1 instead of scaling it by 1/255.
        Unused without images."""

    config: Any

    extra_names: ClassVar[Sequence[str]] = (Q_VALUE, MAX_Q)
    """The policy's extra outputs that initial priorities are computed from."""
    extra_columns: Sequence[Column] = ()
    """The policy's extra outputs at a transition's first observation that are stored in the item;
    they become the `extras` of a batch."""

    def initial_priorities(
        self, columns: Arrays, first: Mapping[str, Array], bootstrap: Mapping[str, Array]
    ) -> npt.NDArray[np.float64]:
        """Absolute TD errors `[M]` from the values that the actor computed when it acted.

        The actor has no target network, so it bootstraps from its own largest value (Horgan et
        al., 2018, section 3).

        Args:
            columns: the columns of M items, `[M, ...]` each.
            first, bootstrap: the policy's extra outputs at the items' first and bootstrap
                observations, `[M]` each.
        """
        target = columns["n_step_return"] + columns["discount"] * bootstrap[MAX_Q]
        priorities: npt.NDArray[np.float64] = np.abs(target - first[Q_VALUE]).astype(np.float64)
        return priorities

    def schema(self) -> Schema:
        spec, n_step = self.spec, self.config.n_step
        columns = [
            spec.action_column,
            Column("n_step_return", "float32"),
            Column("discount", "float32"),
            Column(LEARNER_STEP, "int64"),
            *self.extra_columns,
        ]
        for column in observation_schema(spec):
            columns += [column, msgspec.structs.replace(column, name=f"next_{column.name}")]
        return Schema(tuple(columns), frames_schema(spec, spec.frame_stack + n_step))

    def accumulator(self, num_envs: int, chunk_length: int) -> NStepAccumulator:
        return NStepAccumulator(
            self.spec,
            num_envs,
            n_step=self.config.n_step,
            discount=self.config.discount,
            chunk_length=chunk_length,
            extra_names=list(self.extra_names),
            extra_columns=self.extra_columns,
            initial_priorities=self.initial_priorities,
        )

    def collate(self, items: Items) -> Transitions:
        """A batch of the items, on the CPU.

        Raises:
            CorruptItemsError: an item has an action that the environment does not take, a choice
                that does not exist, a mask that allows no action, or too few frames.
        """
        self._check(items)
        frames, next_frames = (None, None) if items.frames is None else self._stacks(items)
        column = frames_schema(self.spec, 1)
        return Transitions(
            observation=joined(frames, self._arrays(items), column),
            next_observation=joined(next_frames, self._arrays(items, "next_"), column),
            **self._fields(items),
        )

    def pack(self, items: Items) -> Any:
        """`PackedTransitions`; what `collate` makes, if there are no frames or it is overridden.

        Raises:
            CorruptItemsError: as `collate`.
        """
        column = frames_schema(self.spec, 1)
        overridden = type(self).collate is not TransitionAlgorithm.collate
        if items.frames is None or column is None or overridden:
            return self.collate(items)
        self._check(items)
        return PackedTransitions(
            torch.from_numpy(items.frames),
            torch.from_numpy(self._next_start(items)),
            self.spec.frame_stack,
            self._fields(items),
            column,
            self._arrays(items),
            self._arrays(items, "next_"),
        )

    def _arrays(self, items: Items, prefix: str = "") -> dict[str, Tensor]:
        """The parts of the observation, or of the next one, that are not images, by name."""
        return {
            part.name: torch.from_numpy(items.columns[prefix + column_name(part.name)])
            for part in self.spec.arrays
        }

    def _fields(self, items: Items) -> dict[str, Any]:
        """The fields of a batch but the observations."""
        columns = {name: torch.from_numpy(array) for name, array in items.columns.items()}
        masks = {}
        if self.spec.has_action_mask:
            column = column_name(ACTION_MASK)
            masks = {
                "action_mask": columns[column].bool(),
                "next_action_mask": columns[f"next_{column}"].bool(),
            }
        return {
            **{name: columns[name] for name in ("action", "n_step_return", "discount")},
            **masks,
            "probability": torch.from_numpy(items.probabilities.astype(np.float32)),
            "extras": {column.name: columns[column.name] for column in self.extra_columns},
        }

    def _stacks(self, items: Items) -> tuple[Tensor, Tensor]:
        """The first and the bootstrap frame stacks of each item, `[B, stack, ...]` each.

        If all bootstrap stacks begin at frame n, the stacks are views, which saves copying half of
        the batch.
        """
        assert items.frames is not None
        stack, n_step = self.spec.frame_stack, self.config.n_step
        frames, start = torch.from_numpy(items.frames), self._next_start(items)
        if (start == n_step).all():
            return frames[:, :stack], frames[:, n_step:]
        rows = np.arange(len(items))[:, None]
        gathered = items.frames[rows, start[:, None] + np.arange(stack)]
        return frames[:, :stack], torch.from_numpy(gathered)

    def _next_start(self, items: Items) -> npt.NDArray[np.int64]:
        """The first frame of each item's bootstrap stack, `[B]`.

        Fewer than n steps before a bootstrap occur only where an episode was truncated. Without
        such an item all are n, since a bootstrap value after a termination has the discount 0.
        """
        assert items.frame_count is not None
        n_step = self.config.n_step
        steps = items.frame_count.astype(np.int64) - self.spec.frame_stack
        if ((steps == n_step) | (items.columns["discount"] == 0)).all():
            steps[:] = n_step
        return steps

    def _check(self, items: Items) -> None:
        """Check what the schema does not: actions, choices, masks and the number of frames."""
        columns = items.columns
        bad = self.spec.bad_actions(columns["action"]) | forbidden_actions(self.spec, columns)
        for prefix in ("", "next_"):
            bad |= invalid_observations(self.spec, columns, prefix)
        if items.frame_count is not None:
            bad |= items.frame_count <= self.spec.frame_stack
        if bad.any():
            raise CorruptItemsError(
                f"expected {self.spec.actions_text} and more than {self.spec.frame_stack} frames "
                f"in each item{PARTS_RULE if self.spec.parts else ''}",
                items.item_ids[bad].tolist(),
            )
