"""Base class of Q-learning algorithms on n-step transitions, and their policy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor, nn

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.exploration import EpsilonGreedy, LadderPlace, epsilon_ladder
from apex.algos.base import Loss, Metrics, check_errors
from apex.algos.batches import Observation, Transitions
from apex.algos.policy import InputTensors, Policy
from apex.algos.transition_batches import MAX_Q, Q_VALUE, TransitionAlgorithm
from apex.config.sections import NonNegativeFloat, UnitFloat
from apex.data.schema import Arrays
from apex.deprecated_imports import deprecated_names
from apex.envs.spec import EnvSpec
from apex.ops.double_q_learning import huber_loss, squared_loss

Errors = Tensor | tuple[Tensor, Metrics]
"""TD errors, or TD errors and metrics."""


class EpsilonLadder(Protocol):
    """The part of an `[algorithm]` section about epsilon-greedy exploration."""

    @property
    def epsilon(self) -> float:
        """Largest epsilon on the ladder."""

    @property
    def epsilon_alpha(self) -> float:
        """Exponent alpha: how steeply epsilon falls along the ladder."""


def ladder_exploration(config: EpsilonLadder, spec: EnvSpec, place: LadderPlace) -> EpsilonGreedy:
    """Epsilon-greedy exploration for environments at some places of the ladder."""
    epsilons = epsilon_ladder(place.positions, place.size, config.epsilon, config.epsilon_alpha)
    return EpsilonGreedy(epsilons, spec.num_actions, place.seeds)


class QAlgorithm(TransitionAlgorithm):
    """An algorithm that learns action values from n-step transitions.

    A subclass defines `network` and `td_error`, or a `loss` that does without it. This class
    supplies the policy, the exploration ladder, initial priorities, target network, importance
    weights, optimizer and checkpoints.
    """

    class Config(TransitionAlgorithm.Config, frozen=True):
        """The `[algorithm]` section; the defaults are Ape-X DQN's."""

        loss: Literal["squared", "huber"] = "squared"
        """Loss function of the TD error."""
        epsilon: UnitFloat = 0.4
        """Largest probability of a random action on the exploration ladder."""
        epsilon_alpha: NonNegativeFloat = 7.0
        """Exponent alpha of the ladder: its smallest epsilon is epsilon^(1 + alpha)."""

    @abstractmethod
    def network(self) -> nn.Module:
        """The Q-network with newly initialised parameters."""

    def td_error(self, batch: Transitions, online: nn.Module, target: nn.Module) -> Errors:
        """TD errors `[B]` of a batch: target minus prediction, not clipped.

        Args:
            batch: transitions on the learner's device.
            online: the trained network; gradients must flow only through the prediction.
            target: the target network.

        Returns:
            The errors, or a tuple of the errors and of metrics by name (0-dimensional tensors).
        """
        raise NotImplementedError("define td_error, or a loss that does without it")

    @classmethod
    def undefined(cls) -> list[str]:
        neither = cls.td_error is QAlgorithm.td_error and cls.loss is QAlgorithm.loss
        return [*super().undefined(), *(["td_error or loss"] if neither else [])]

    def q_values(self, network: nn.Module, observation: Observation) -> Tensor:
        """Action values `[B, num_actions]` that the policy acts on: by default the output.

        The policy never takes an action that a mask forbids. A `td_error` that uses the largest
        value of the bootstrap observation must leave those out: `masked_values` of
        `batch.next_action_mask`."""
        values: Tensor = network(observation)
        return values

    def loss(self, batch: Transitions, online: nn.Module, target: nn.Module | None) -> Loss:
        """Squared or Huber loss of the TD errors; priorities are the errors' magnitudes."""
        assert target is not None
        errors, metrics = with_metrics(self.td_error(batch, online, target))
        check_errors(errors, f"{type(self).__name__}.td_error", len(batch.action))
        loss = squared_loss if self.config.loss == "squared" else huber_loss
        priority = errors.detach().abs()
        return Loss(loss(errors), priority, {"td_error": priority.mean(), **metrics})

    def exploration(self, place: LadderPlace) -> Exploration:
        return ladder_exploration(self.config, self.spec, place)

    def policy(self) -> Policy:
        return QPolicy(self.network(), self.q_values)


def with_metrics(result: Any) -> tuple[Tensor, Metrics]:
    """Split the result of `td_error` into errors and metrics; it may have no metrics."""
    errors, metrics = result if isinstance(result, tuple) else (result, {})
    return errors, metrics


class QPolicy(Policy):
    """Chooses actions by their Q-values.

    Args:
        network: the Q-network.
        q_values: computes `[B, num_actions]` from the network and observations; default: the
            network's output.
    """

    def __init__(
        self, network: nn.Module, q_values: Callable[[nn.Module, Any], Tensor] | None = None
    ) -> None:
        self.network = network.eval()
        self._q_values = q_values or (lambda network, observation: network(observation))

    def compute(self, inputs: InputTensors) -> Mapping[str, Tensor]:
        return {"q_values": inputs.masked(self._q_values(self.network, inputs.observations))}

    def decide(self, outputs: Arrays, inputs: Inputs, exploration: Exploration | None) -> Decision:
        q_values = outputs["q_values"]
        actions = q_values.argmax(axis=1) if exploration is None else exploration(q_values)
        extras = {
            Q_VALUE: q_values[np.arange(len(actions)), actions].astype(np.float64),
            MAX_Q: q_values.max(axis=1).astype(np.float64),
        }
        return Decision(actions, inputs.core_state, extras)


__getattr__ = deprecated_names(__name__)
