"""What algorithms that learn from n-step transitions share: their items and their batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from apex.acting.transition_accumulator import NStepAccumulator
from apex.algos.base import Algorithm
from apex.algos.optimization import OptimizerSection
from apex.algos.q_learning import MAX_Q, Q_VALUE
from apex.config.sections import NonNegativeFloat, PositiveInt, UnitFloat
from apex.data.chunks import Items
from apex.data.schema import LEARNER_STEP, Array, Arrays, Column, FramesColumn, Schema
from apex.errors import CorruptItemsError


class TransitionSection(OptimizerSection, frozen=True):
    """The part of an `[algorithm]` section about transitions and how they are weighed."""

    n_step: PositiveInt = 3
    """Rewards of a transition."""
    discount: UnitFloat = 0.99
    """gamma."""
    importance_sampling_exponent: NonNegativeFloat = 0.4
    """beta: how far the learner makes up for what prioritized sampling favours; 0: not at all."""
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


class TransitionAlgorithm(Algorithm):
    """An algorithm whose items are n-step transitions, of images or of vectors."""

    config: TransitionSection

    extra_names: ClassVar[Sequence[str]] = (Q_VALUE, MAX_Q)
    """The policy's extras that initial priorities are computed from."""

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
            initial_priorities=self.initial_priorities,
        )

    def collate(self, items: Items) -> Arrays:
        """Both observations, action, n-step return, discount and probability: `[B, ...]` each.

        Raises:
            CorruptItemsError: an item's action is none, or it has too few frames.
        """
        self._check(items)
        columns = {name: a for name, a in items.columns.items() if name != LEARNER_STEP}
        if items.frames is not None:
            columns["observation"] = items.frames[:, : self.spec.frame_stack]
            columns["next_observation"] = self._bootstrap_stacks(items.frames, items)
        columns["probability"] = items.probabilities.astype(np.float32)
        return columns

    def _bootstrap_stacks(self, frames: Array, items: Items) -> Array:
        """`[B, stack, ...]`, the last frames of each item that bootstraps; of others any frames.

        All begin at the same frame but those of episodes that were cut within n steps. A view
        spares the copy of half a batch.
        """
        assert items.frame_count is not None
        stack, n_step = self.spec.frame_stack, self.config.n_step
        steps = items.frame_count - stack
        if ((steps == n_step) | (items.columns["discount"] == 0)).all():
            return frames[:, n_step:]
        rows = np.arange(len(items))[:, None]
        gathered: Array = frames[rows, steps[:, None] + np.arange(stack)]
        return gathered

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
