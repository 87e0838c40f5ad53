"""R2D2 (Kapturowski et al., 2019, OpenReview r1lyTjAqYX): recurrent Q-learning from sequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.sequence_accumulator import SequenceLayout
from apex.algos.base import BatchArrays, Learner, Policy
from apex.algos.q_learning import MAX_Q, Q_VALUE, TargetNetworkLearner, ladder_exploration
from apex.algos.sequence_batches import (
    CORE_STATE,
    SequenceAlgorithm,
    SequenceSection,
    acting_inputs,
    core_state_column,
    learning_inputs,
)
from apex.config.sections import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    UnitFloat,
)
from apex.data.schema import Arrays
from apex.networks.recurrent_cores import SequenceInputs
from apex.networks.recurrent_dueling import RecurrentDuelingQNetwork
from apex.ops.q_learning import importance_weights, n_step_targets, sequence_priorities
from apex.ops.value_rescale import rescale, unrescale


class R2D2Config(SequenceSection, frozen=True):
    """The `[algorithm]` section; the defaults are the paper's."""

    name: str = "r2d2"
    burn_in: NonNegativeInt = 40
    """Steps before those that are learned from, which only bring the recurrent state up to date."""
    unroll_length: PositiveInt = 80
    """Steps that are learned from in one item."""
    overlap: NonNegativeInt = 40
    """Steps of one item's unroll that the next item's unroll has too."""
    n_step: PositiveInt = 5
    """Rewards of each target."""
    discount: UnitFloat = 0.997
    """gamma."""
    priority_eta: UnitFloat = 0.9
    """Share of the largest TD error in a sequence's priority; the rest is the mean's."""
    importance_sampling_exponent: NonNegativeFloat = 0.6
    """beta: how far the learner makes up for what prioritized sampling favours; 0: not at all."""
    target_update_period: PositiveInt = 2500
    """Learner steps between two copies of the online to the target network."""
    epsilon: PositiveFloat = 0.4
    """The largest of the ladder of epsilons."""
    epsilon_alpha: NonNegativeFloat = 7.0
    """How steeply the others fall: the smallest is epsilon^(1 + alpha)."""
    optimizer: Literal["rmsprop", "adam"] = "adam"
    learning_rate: PositiveFloat = 1e-4
    optimizer_epsilon: PositiveFloat = 1e-3
    lstm: NonNegativeInt = 512
    stream_hidden: tuple[PositiveInt, ...] = (512,)
    """Widths of each dueling stream's own layers."""

    def __post_init__(self) -> None:
        if self.overlap >= self.unroll_length:
            raise ValueError(
                f"overlap ({self.overlap}) must be less than unroll_length ({self.unroll_length})"
            )


class R2D2(SequenceAlgorithm):
    """R2D2 for discrete actions and image or vector observations."""

    Config = R2D2Config
    config: R2D2Config
    extra_names = (Q_VALUE, MAX_Q, CORE_STATE)

    def layout(self) -> SequenceLayout:
        config = self.config
        return SequenceLayout(
            length=config.burn_in + config.unroll_length + config.n_step,
            period=config.unroll_length - config.overlap,
            discount=config.discount,
            first_extras=core_state_column(2 * config.lstm),
        )

    def initial_priorities(self, columns: Arrays, extras: Arrays) -> npt.NDArray[np.float64]:
        """As the learner computes them, from the values that the actor computed when it acted."""
        columns = {name: array[:, self.config.burn_in :] for name, array in columns.items()
                   if array.ndim > 1}  # fmt: skip
        tensors = {name: torch.from_numpy(array) for name, array in columns.items()}
        q_values, max_q = (
            torch.from_numpy(extras[name][:, self.config.burn_in :]) for name in (Q_VALUE, MAX_Q)
        )
        is_last = tensors["is_last"].bool()
        bootstrap = unrescale(max_q)
        targets = rescale(
            n_step_targets(
                tensors["reward"], tensors["discount"], is_last, bootstrap, self.config.n_step
            )
        )
        length = self.config.unroll_length
        td_errors = targets - q_values[:, :length]
        priorities = sequence_priorities(td_errors, ~is_last[:, :length], self.config.priority_eta)
        return priorities.double().numpy()

    def exploration(
        self, positions: npt.NDArray[np.float64], ladder_size: int, seeds: Sequence[Sequence[int]]
    ) -> Exploration:
        return ladder_exploration(self.config, self.spec, positions, ladder_size, seeds)

    def network(self) -> RecurrentDuelingQNetwork:
        """The network with fresh parameters."""
        return RecurrentDuelingQNetwork(self.spec, self.config.layers, self.config.stream_hidden)

    def policy(self) -> Policy:
        return RecurrentQPolicy(self.network())

    def learner(self, device: torch.device) -> Learner:
        return R2D2Learner(self.network(), self.network(), self.config, device)


class RecurrentQPolicy(Policy):
    """Acts by a Q-network with memory."""

    def __init__(self, network: RecurrentDuelingQNetwork) -> None:
        self.network = network.eval()
        self.core_size = network.core.core_size

    @torch.inference_mode()
    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        q_values, core_state = self.network(acting_inputs(inputs, self.device))
        q_values = q_values.squeeze(1).cpu().numpy()
        actions = q_values.argmax(axis=1) if exploration is None else exploration(q_values)
        extras = {
            Q_VALUE: q_values[np.arange(len(actions)), actions],
            MAX_Q: q_values.max(axis=1),
            CORE_STATE: inputs.core_state,
        }
        return Decision(actions, core_state.cpu().numpy(), extras)


class R2D2Learner(TargetNetworkLearner):
    """Learns by the double-Q errors of whole sequences."""

    def __init__(
        self, online: nn.Module, target: nn.Module, config: R2D2Config, device: torch.device
    ) -> None:
        super().__init__(online, target, config, config.target_update_period, device)
        self._config = config

    def update(
        self, batch: BatchArrays
    ) -> tuple[npt.NDArray[np.float64], dict[str, float | Tensor]]:
        tensors = self.tensors(batch)
        config = self._config
        inputs = learning_inputs(tensors)
        q_values = self._unrolled(self.network, inputs)
        with torch.no_grad():
            target_q = self._unrolled(self.target, inputs)
            targets = self._targets(tensors, q_values, target_q)
        steps = slice(config.burn_in, config.burn_in + config.unroll_length)
        actions = tensors["action"][:, steps].long().unsqueeze(-1)
        learned = ~tensors["is_last"][:, steps]
        chosen = q_values[:, : config.unroll_length].gather(-1, actions).squeeze(-1)
        td_errors = targets - chosen
        losses = 0.5 * (learned * td_errors.square()).sum(dim=1)
        weights = importance_weights(tensors["probability"], config.importance_sampling_exponent)
        loss = (weights * losses).mean()
        step_metrics = self.descend(loss)
        priorities = sequence_priorities(td_errors.detach(), learned, config.priority_eta)
        metrics = {
            **step_metrics,
            "loss": loss.detach() / config.unroll_length,
            "td_error": (learned * td_errors.detach().abs()).sum() / learned.sum(),
            "q_mean": q_values.detach().mean(),
            "q_max": q_values.detach().max(),
            "importance_weight_mean": weights.mean(),
        }
        return priorities.double().cpu().numpy(), metrics

    def _unrolled(self, network: nn.Module, inputs: SequenceInputs) -> Tensor:
        """Q-values `[B, L - burn_in, A]`; the steps before only bring the state up to date."""
        burn_in, core_state = self._config.burn_in, inputs.core_state
        if burn_in:
            with torch.no_grad():
                _, core_state = network(inputs.part(0, burn_in, core_state))
        q_values: Tensor = network(inputs.part(burn_in, None, core_state))[0]
        return q_values

    def _targets(self, tensors: dict[str, Tensor], q_values: Tensor, target_q: Tensor) -> Tensor:
        """`[B, unroll_length]`: h(n-step return of h^-1(Q)), the action chosen by double Q."""
        best = q_values.argmax(dim=-1, keepdim=True)
        bootstrap = unrescale(target_q.gather(-1, best).squeeze(-1))
        rest = slice(self._config.burn_in, None)
        rewards, discounts, is_last = (
            tensors[name][:, rest] for name in ("reward", "discount", "is_last")
        )
        return rescale(n_step_targets(rewards, discounts, is_last, bootstrap, self._config.n_step))
