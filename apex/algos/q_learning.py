"""What agents that learn action values share: what they remember, how they explore, a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from apex.acting.exploration import EpsilonGreedy, epsilon_ladder
from apex.algos.base import Learner
from apex.algos.optimization import Optimization, OptimizerSection
from apex.envs.spec import EnvSpec

Q_VALUE, MAX_Q = "q_value", "max_q"
"""A policy's extras: the value of the action that it took, and that of the one it holds best."""


class EpsilonLadder(Protocol):
    """The part of an `[algorithm]` section about exploration."""

    @property
    def epsilon(self) -> float:
        """The largest of the ladder."""

    @property
    def epsilon_alpha(self) -> float:
        """How steeply the others fall."""


def ladder_exploration(
    config: EpsilonLadder,
    spec: EnvSpec,
    positions: npt.NDArray[np.float64],
    ladder_size: int,
    seeds: Sequence[Sequence[int]],
) -> EpsilonGreedy:
    """`Algorithm.exploration` of an agent with a ladder of epsilons."""
    epsilons = epsilon_ladder(positions, ladder_size, config.epsilon, config.epsilon_alpha)
    return EpsilonGreedy(epsilons, spec.num_actions, seeds)


class OnlineAndTarget(Learner):
    """An online network that is trained and published, and a target network that follows it.

    Args:
        online: the network.
        target: another one of its kind; it starts as a copy.
        target_update_period: learner steps between two copies of the online to the target network.
        device: where both are.
    """

    def __init__(
        self,
        online: nn.Module,
        target: nn.Module,
        target_update_period: int,
        device: torch.device,
    ) -> None:
        self.network = online.to(device)
        self.target = target.to(device).requires_grad_(False)
        self.target.load_state_dict(online.state_dict())
        self.device = device
        self._target_update_period = target_update_period

    def follow(self, learner_step: int) -> None:
        """Copy the online to the target network where a period ends with this step."""
        if learner_step % self._target_update_period == 0:
            self.target.load_state_dict(self.network.state_dict())

    def load_parameters(self, parameters: Mapping[str, Tensor]) -> None:
        self.network.load_state_dict(parameters)
        self.target.load_state_dict(parameters)

    def state_dict(self) -> dict[str, Any]:
        return {"online": self.network.state_dict(), "target": self.target.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["online"])
        self.target.load_state_dict(state["target"])


class TargetNetworkLearner(OnlineAndTarget):
    """An online network with one loss, and its target network.

    Args:
        online: the network.
        target: another one of its kind.
        config: of the optimizer.
        target_update_period: see `OnlineAndTarget`.
        device: where both are.
    """

    def __init__(
        self,
        online: nn.Module,
        target: nn.Module,
        config: OptimizerSection,
        target_update_period: int,
        device: torch.device,
    ) -> None:
        super().__init__(online, target, target_update_period, device)
        self._optimization = Optimization(self.network, config)

    def descend(self, loss: Tensor) -> dict[str, float | Tensor]:
        """One step of the online network, after each period a copy to the target network.

        Returns:
            What is logged of the step.
        """
        metrics = self._optimization.step(loss)
        self.follow(self._optimization.updates)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), **self._optimization.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._optimization.load_state_dict(state)
        super().load_state_dict(state)
