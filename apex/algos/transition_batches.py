"""Items and batches of algorithms that learn from n-step transitions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from apex.acting.transition_accumulator import NStepAccumulator
from apex.algos.base import Algorithm
from apex.algos.batches import Transitions
from apex.algos.optimization import OptimizerConfig
from apex.config.sections import PositiveInt, UnitFloat
from apex.data.chunks import Items
from apex.data.schema import LEARNER_STEP, Array, Arrays, Column, FramesColumn, Schema
from apex.errors import CorruptItemsError

Q_VALUE, MAX_Q = "q_value", "max_q"
"""A policy's extras: the value of the action that it took, and that of the one it holds best."""


class TransitionAlgorithm(Algorithm):
    """An algorithm whose items are n-step transitions, of images or of vectors."""

    class Config(OptimizerConfig, frozen=True):
        """The part of an `[algorithm]` section about transitions and their weights."""

        n_step: PositiveInt = 3
        """Rewards of a transition."""
        discount: UnitFloat = 0.99
        """gamma."""
        importance_sampling_exponent: UnitFloat = 0.4
        """beta: how far the learner makes up for what prioritized sampling favours; 0: not at
        all."""
        target_update_period: PositiveInt = 2500
        """Learner steps between two copies of the online to the target network."""
        conv: tuple[tuple[PositiveInt, PositiveInt, PositiveInt], ...] = (
            (32, 8, 4),
            (64, 4, 2),
            (64, 3, 1),
        )
        """Output channels, kernel and stride of each convolution; unused without images."""
        standardize_frames: bool = False
        """Each stack of frames gets mean 0 and variance 1; otherwise it is scaled by 1/255. Unused
        without images."""

    config: Any

    extra_names: ClassVar[Sequence[str]] = (Q_VALUE, MAX_Q)
    """The policy's extras that initial priorities are computed from."""
    extra_columns: Sequence[Column] = ()
    """The policy's extras that items hold, as they are where the transition begins: the `extras`
    of a batch."""

    def initial_priorities(
        self, columns: Arrays, first: Mapping[str, Array], bootstrap: Mapping[str, Array]
    ) -> npt.NDArray[np.float64]:
        """|TD error| from the values that the actor computed when it acted, `[M]`.

        The actor has no target network, so the bootstrap value is that of its own best action
        (Horgan et al., 2018, section 3: "priorities computed from the actors' own value
        estimates").

        Args:
            columns: of M items, `[M, ...]` each.
            first, bootstrap: the policy's extras at their first and at their bootstrap
                observation, `[M]` each.
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
        if spec.frame_stack:
            frames = FramesColumn(spec.observation_shape, spec.frame_stack + n_step)
            return Schema(tuple(columns), frames)
        for name in ("observation", "next_observation"):
            columns.append(Column(name, spec.observation_dtype, spec.observation_shape))
        return Schema(tuple(columns))

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
            CorruptItemsError: an item's action is not one of the environment's, or it has too few
                frames.
        """
        self._check(items)
        columns = {name: torch.from_numpy(array) for name, array in items.columns.items()}
        if items.frames is not None:
            columns["observation"], columns["next_observation"] = self._stacks(items)
        return Transitions(
            observation=columns["observation"],
            action=columns["action"],
            n_step_return=columns["n_step_return"],
            discount=columns["discount"],
            next_observation=columns["next_observation"],
            probability=torch.from_numpy(items.probabilities.astype(np.float32)),
            extras={column.name: columns[column.name] for column in self.extra_columns},
        )

    def _stacks(self, items: Items) -> tuple[Tensor, Tensor]:
        """`[B, stack, ...]`: the first frames of each item, and the last of those that bootstrap.

        All begin at the same frame but those of episodes that were cut within n steps. A view
        spares the copy of half a batch.
        """
        assert items.frames is not None and items.frame_count is not None
        stack, n_step = self.spec.frame_stack, self.config.n_step
        frames, steps = torch.from_numpy(items.frames), items.frame_count - stack
        if ((steps == n_step) | (items.columns["discount"] == 0)).all():
            return frames[:, :stack], frames[:, n_step:]
        rows = np.arange(len(items))[:, None]
        gathered = items.frames[rows, steps[:, None] + np.arange(stack)]
        return frames[:, :stack], torch.from_numpy(gathered)

    def _check(self, items: Items) -> None:
        """What the schema cannot say: an actor may have sent it all the same."""
        bad = self.spec.bad_actions(items.columns["action"])
        if items.frame_count is not None:
            bad |= items.frame_count <= self.spec.frame_stack
        if bad.any():
            raise CorruptItemsError(
                f"expected {self.spec.actions_text} and more than {self.spec.frame_stack} frames "
                "of each item",
                items.item_ids[bad].tolist(),
            )
