"""Ape-X DQN (Horgan et al., 2018, arXiv 1803.00933): double, dueling, n-step, prioritized."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.exploration import EpsilonGreedy
from apex.algos.base import BatchArrays, Learner, Policy
from apex.algos.q_learning import MAX_Q, Q_VALUE, TargetNetworkLearner, ladder_exploration
from apex.algos.transition_batches import TransitionAlgorithm, TransitionSection
from apex.config.sections import NonNegativeFloat, PositiveFloat, PositiveInt
from apex.networks.dueling import DuelingQNetwork
from apex.ops.q_learning import (
    double_q_td_error,
    huber_loss,
    importance_weights,
    squared_loss,
)


class ApexDQNConfig(TransitionSection, frozen=True):
    """The `[algorithm]` section; the defaults are the paper's."""

    name: str = "apex_dqn"
    loss: Literal["squared", "huber"] = "squared"
    """Of the TD error."""
    epsilon: PositiveFloat = 0.4
    """The largest of the ladder of epsilons."""
    epsilon_alpha: NonNegativeFloat = 7.0
    """How steeply the others fall: the smallest is epsilon^(1 + alpha)."""
    hidden: tuple[PositiveInt, ...] = ()
    """Widths of the layers that both dueling streams share."""
    stream_hidden: tuple[PositiveInt, ...] = (512,)
    """Widths of each dueling stream's own layers."""


class ApexDQN(TransitionAlgorithm):
    """Ape-X DQN for discrete actions and image or vector observations."""

    Config = ApexDQNConfig
    config: ApexDQNConfig

    def exploration(
        self, positions: npt.NDArray[np.float64], ladder_size: int, seeds: Sequence[Sequence[int]]
    ) -> EpsilonGreedy:
        return ladder_exploration(self.config, self.spec, positions, ladder_size, seeds)

    def network(self) -> DuelingQNetwork:
        """The Q-network with fresh parameters."""
        config = self.config
        return DuelingQNetwork(
            self.spec,
            config.conv,
            config.hidden,
            config.stream_hidden,
            standardize=config.standardize_frames,
        )

    def policy(self) -> Policy:
        return QPolicy(self.network())

    def learner(self, device: torch.device) -> Learner:
        return DQNLearner(self.network(), self.network(), self.config, device)


class QPolicy(Policy):
    """Acts by a Q-network."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()

    @torch.inference_mode()
    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        observations = torch.from_numpy(inputs.observations).to(self.device)
        q_values = self.network(observations).cpu().numpy()
        actions = q_values.argmax(axis=1) if exploration is None else exploration(q_values)
        extras = {
            Q_VALUE: q_values[np.arange(len(actions)), actions].astype(np.float64),
            MAX_Q: q_values.max(axis=1).astype(np.float64),
        }
        return Decision(actions, inputs.core_state, extras)


class DQNLearner(TargetNetworkLearner):
    """Learns by the double-Q error of single transitions."""

    def __init__(
        self, online: nn.Module, target: nn.Module, config: ApexDQNConfig, device: torch.device
    ) -> None:
        super().__init__(online, target, config, config.target_update_period, device)
        self._config = config

    def update(
        self, batch: BatchArrays
    ) -> tuple[npt.NDArray[np.float64], dict[str, float | Tensor]]:
        tensors = self.tensors(batch)
        q_tm1 = self.network(tensors["observation"])
        with torch.no_grad():
            selector = self.network(tensors["next_observation"])
            target = self.target(tensors["next_observation"])
        td_errors = double_q_td_error(
            q_tm1,
            tensors["action"].long(),
            tensors["n_step_return"],
            tensors["discount"],
            target,
            selector,
        )
        weights = importance_weights(
            tensors["probability"], self._config.importance_sampling_exponent
        )
        losses = (squared_loss if self._config.loss == "squared" else huber_loss)(td_errors)
        loss = (weights * losses).mean()
        step_metrics = self.descend(loss)
        priorities = td_errors.detach().abs()
        metrics = {
            **step_metrics,
            "loss": loss.detach(),
            "td_error": priorities.mean(),
            "q_mean": q_tm1.detach().mean(),
            "q_max": q_tm1.detach().max(),
            "importance_weight_mean": weights.mean(),
        }
        return priorities.double().cpu().numpy(), metrics
