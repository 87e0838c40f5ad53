"""R2D2 (Kapturowski et al., 2019, OpenReview r1lyTjAqYX): recurrent Q-learning from sequences."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from apex.acting.sequence_accumulator import SequenceLayout
from apex.algos.batches import Sequences
from apex.algos.sequence_batches import core_state_column
from apex.algos.sequence_q_learning import SequenceQAlgorithm
from apex.algos.transition_batches import MAX_Q, Q_VALUE
from apex.config.sections import NonNegativeInt, PositiveFloat, PositiveInt, UnitFloat
from apex.data.schema import Arrays
from apex.deprecated_imports import deprecated_names
from apex.networks.recurrent_dueling import RecurrentDuelingQNetwork
from apex.ops.action_masks import masked_values
from apex.ops.double_q_learning import n_step_targets, sequence_priorities
from apex.ops.value_rescale import rescale, unrescale


class R2D2(SequenceQAlgorithm):
    """R2D2 for discrete actions."""

    class Config(SequenceQAlgorithm.Config, frozen=True):
        """The `[algorithm]` section; the defaults are the paper's."""

        name: str = "r2d2"
        overlap: NonNegativeInt = 40
        """Environment steps shared by the unrolls of two consecutive items."""
        n_step: PositiveInt = 5
        """Environment steps whose rewards are summed in each target."""
        discount: UnitFloat = 0.997
        """Discount factor gamma per environment step."""
        optimizer: Literal["rmsprop", "adam"] = "adam"
        learning_rate: PositiveFloat = 1e-4
        optimizer_epsilon: PositiveFloat = 1e-3
        lstm: NonNegativeInt = 512
        stream_hidden: tuple[PositiveInt, ...] = (512,)
        """Units in each fully connected layer of one dueling stream."""

        def __post_init__(self) -> None:
            if self.overlap >= self.unroll_length:
                raise ValueError(
                    f"overlap ({self.overlap}) must be less than unroll_length "
                    f"({self.unroll_length})"
                )

    def layout(self) -> SequenceLayout:
        config = self.config
        return SequenceLayout(
            length=config.burn_in + config.unroll_length + config.n_step,
            period=config.unroll_length - config.overlap,
            discount=config.discount,
            first_extras=core_state_column(2 * config.lstm),
        )

    def network(self) -> RecurrentDuelingQNetwork:
        return RecurrentDuelingQNetwork(
            self.spec, self.config.layers, self.config.stream_hidden, self.encoders()
        )

    def td_error(self, batch: Sequences, q: Tensor, target_q: Tensor) -> tuple[Tensor, Tensor]:
        """h(n-step return with h^-1(Q) as bootstrap value) - Q(x, a), with double Q-learning."""
        steps = slice(self.config.unroll_length)
        best = masked_values(q.detach(), batch.action_mask).argmax(dim=-1, keepdim=True)
        bootstrap = unrescale(target_q.gather(-1, best).squeeze(-1))
        actions = batch.action[:, steps].long().unsqueeze(-1)
        chosen = q[:, steps].gather(-1, actions).squeeze(-1)
        targets = self._targets(batch.reward, batch.discount, batch.is_last, bootstrap)
        return targets - chosen, ~batch.is_last[:, steps]

    def _targets(self, reward: Tensor, discount: Tensor, is_last: Tensor, value: Tensor) -> Tensor:
        """Rescaled targets `[B, unroll_length]` from unscaled values `[B, L - burn_in]`."""
        return rescale(n_step_targets(reward, discount, is_last, value, self.config.n_step))

    def initial_priorities(self, columns: Arrays, extras: Arrays) -> npt.NDArray[np.float64]:
        """Priorities by the learner's formula, from the values that the actor computed."""
        rows = slice(self.config.burn_in, None)
        steps = slice(self.config.unroll_length)
        reward, discount, is_last = (
            torch.from_numpy(columns[name][:, rows]) for name in ("reward", "discount", "is_last")
        )
        q_values, max_q = (torch.from_numpy(extras[name][:, rows]) for name in (Q_VALUE, MAX_Q))
        targets = self._targets(reward, discount, is_last.bool(), unrescale(max_q))
        priorities = sequence_priorities(
            targets - q_values[:, steps], ~is_last.bool()[:, steps], self.config.priority_eta
        )
        return priorities.double().numpy()


__getattr__ = deprecated_names(__name__)
