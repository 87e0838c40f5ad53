"""Q-learning from n-step transitions: an algorithm is its network and its TD error."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.exploration import EpsilonGreedy, LadderPlace, epsilon_ladder
from apex.algos.base import Loss, Metrics, Policy
from apex.algos.batches import Observation, Transitions
from apex.algos.noise import resample_noise
from apex.algos.transition_batches import MAX_Q, Q_VALUE, TransitionAlgorithm
from apex.config.sections import NonNegativeFloat, UnitFloat
from apex.deprecated_imports import deprecated_names
from apex.envs.spec import EnvSpec
from apex.ops.double_q_learning import huber_loss, squared_loss

Errors = Tensor | tuple[Tensor, Metrics]
"""TD errors, alone or with what is to be logged."""


class EpsilonLadder(Protocol):
    """The part of an `[algorithm]` section about exploration."""

    @property
    def epsilon(self) -> float:
        """The largest of the ladder."""

    @property
    def epsilon_alpha(self) -> float:
        """How steeply the others fall."""


def ladder_exploration(config: EpsilonLadder, spec: EnvSpec, place: LadderPlace) -> EpsilonGreedy:
    """`Algorithm.exploration` of an agent with a ladder of epsilons."""
    epsilons = epsilon_ladder(place.positions, place.size, config.epsilon, config.epsilon_alpha)
    return EpsilonGreedy(epsilons, spec.num_actions, place.seeds)


class QAlgorithm(TransitionAlgorithm):
    """Learns action values from n-step transitions.

    Give `network` and `td_error`. Policy, exploration ladder, initial priorities, target network,
    importance weights, optimizer and checkpoints come from here.
    """

    class Config(TransitionAlgorithm.Config, frozen=True):
        """The `[algorithm]` section; the defaults are Ape-X DQN's."""

        loss: Literal["squared", "huber"] = "squared"
        """Of the TD error."""
        epsilon: UnitFloat = 0.4
        """The largest of the ladder of epsilons."""
        epsilon_alpha: NonNegativeFloat = 7.0
        """How steeply the others fall: the smallest is epsilon^(1 + alpha)."""

    @abstractmethod
    def network(self) -> nn.Module:
        """The Q-network with fresh parameters."""

    @abstractmethod
    def td_error(self, batch: Transitions, online: nn.Module, target: nn.Module) -> Errors:
        """TD errors `[B]` of a batch, not clipped: target minus prediction.

        Args:
            batch: on the learner's device.
            online: the network that is trained; gradients flow through the prediction alone.
            target: the network that follows it.

        Returns:
            The errors; or the errors, and tensors that are logged by their names.
        """

    def q_values(self, network: nn.Module, observation: Observation) -> Tensor:
        """Action values `[B, num_actions]`, by which the policy chooses: the network's output."""
        values: Tensor = network(observation)
        return values

    def loss(self, batch: Transitions, online: nn.Module, target: nn.Module | None) -> Loss:
        """Squared or Huber loss of the TD errors; priorities are their magnitudes."""
        assert target is not None
        errors, metrics = with_metrics(self.td_error(batch, online, target))
        loss = squared_loss if self.config.loss == "squared" else huber_loss
        priority = errors.detach().abs()
        return Loss(loss(errors), priority, {"td_error": priority.mean(), **metrics})

    def exploration(self, place: LadderPlace) -> Exploration:
        return ladder_exploration(self.config, self.spec, place)

    def policy(self) -> Policy:
        return QPolicy(self.network(), self.q_values)


def with_metrics(given: Any) -> tuple[Tensor, Metrics]:
    """What `td_error` gave, with metrics or without."""
    errors, metrics = given if isinstance(given, tuple) else (given, {})
    return errors, metrics


class QPolicy(Policy):
    """Chooses actions by their values.

    Args:
        network: that is loaded and published.
        q_values: of a network and observations; the network's output where it is not given.
    """

    def __init__(
        self, network: nn.Module, q_values: Callable[[nn.Module, Tensor], Tensor] | None = None
    ) -> None:
        self.network = network.eval()
        self._q_values = q_values or (lambda network, observation: network(observation))

    @torch.inference_mode()
    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        resample_noise(self.network, noisy=exploration is not None)
        observations = torch.from_numpy(inputs.observations).to(self.device)
        q_values = self._q_values(self.network, observations).cpu().numpy()
        actions = q_values.argmax(axis=1) if exploration is None else exploration(q_values)
        extras: Mapping[str, Any] = {
            Q_VALUE: q_values[np.arange(len(actions)), actions].astype(np.float64),
            MAX_Q: q_values.max(axis=1).astype(np.float64),
        }
        return Decision(actions, inputs.core_state, dict(extras))


__getattr__ = deprecated_names(__name__)
