"""Ape-X DPG (Horgan et al., 2018, arXiv 1803.00933): deterministic actor, critic, n-step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.exploration import GaussianNoise, noise_ladder
from apex.algos.base import BatchArrays, Learner, Policy
from apex.algos.optimization import Optimization
from apex.algos.q_learning import MAX_Q, Q_VALUE, OnlineAndTarget
from apex.algos.transition_batches import TransitionAlgorithm, TransitionSection
from apex.config.sections import PositiveFloat, PositiveInt
from apex.networks.deterministic import DeterministicLayers, DeterministicNetwork
from apex.ops.deterministic_policy_gradient import deterministic_policy_gradient_loss, td_error
from apex.ops.q_learning import huber_loss, importance_weights, squared_loss

Widths = Annotated[tuple[PositiveInt, ...], msgspec.Meta(min_length=1)]


class ApexDPGConfig(TransitionSection, frozen=True):
    """The `[algorithm]` section; the defaults are the paper's (appendix D)."""

    name: str = "apex_dpg"
    n_step: PositiveInt = 5
    target_update_period: PositiveInt = 100
    optimizer: Literal["rmsprop", "adam"] = "adam"
    optimizer_epsilon: PositiveFloat = 1e-8
    learning_rate: PositiveFloat = 1e-4
    """Of the critic."""
    actor_learning_rate: PositiveFloat = 1e-4
    """Of the actor; it falls as that of the critic."""
    action_gradient_clip: PositiveFloat = 1.0
    """Largest magnitude of each element of dQ/da, by which the actor is changed."""
    loss: Literal["squared", "huber"] = "squared"
    """Of the critic."""
    noise: PositiveFloat = 0.3
    """Standard deviation of what is added to actions, of half the distance between their bounds:
    the largest of the ladder."""
    smallest_noise: PositiveFloat = 0.3
    """The smallest of the ladder; that of the paper has one rung."""
    actor_hidden: Widths = (300, 200)
    """Widths of the actor's fully connected layers."""
    critic_hidden: Widths = (400, 300)
    """Widths of the critic's fully connected layers."""


class ApexDPG(TransitionAlgorithm):
    """Ape-X DPG for continuous actions with bounds, and image or vector observations."""

    Config = ApexDPGConfig
    config: ApexDPGConfig
    action_kinds = frozenset({"continuous"})

    def exploration(
        self, positions: npt.NDArray[np.float64], ladder_size: int, seeds: Sequence[Sequence[int]]
    ) -> GaussianNoise:
        bounds = self.spec.action_bounds
        assert bounds is not None
        sigmas = noise_ladder(positions, ladder_size, self.config.noise, self.config.smallest_noise)
        return GaussianNoise(sigmas, *bounds.arrays(), seeds)

    def network(self) -> DeterministicNetwork:
        """Actor and critic with fresh parameters."""
        config = self.config
        layers = DeterministicLayers(
            config.conv, config.actor_hidden, config.critic_hidden, config.standardize_frames
        )
        return DeterministicNetwork(self.spec, layers)

    def policy(self) -> Policy:
        return DeterministicPolicy(self.network())

    def learner(self, device: torch.device) -> Learner:
        return DPGLearner(self.network(), self.network(), self.config, device)


class DeterministicPolicy(Policy):
    """Acts by the actor; the critic says what initial priorities are made of."""

    network: DeterministicNetwork

    def __init__(self, network: DeterministicNetwork) -> None:
        self.network = network.eval()

    @torch.inference_mode()
    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        network = self.network
        observations = torch.from_numpy(inputs.observations).to(self.device)
        best = network.actor(observations)
        actions = network.to_environment(best).cpu().numpy()
        if exploration is None:
            return Decision(actions, inputs.core_state, {})
        actions = exploration(actions)
        taken = network.from_environment(torch.from_numpy(actions).to(self.device))
        extras = {
            Q_VALUE: network.critic(observations, taken).double().cpu().numpy(),
            MAX_Q: network.critic(observations, best).double().cpu().numpy(),
        }
        return Decision(actions, inputs.core_state, extras)


class DPGLearner(OnlineAndTarget):
    """Learns the critic by its TD error, and the actor by the critic.

    Args:
        online: actor and critic that are trained and published.
        target: another such pair.
        config: of the algorithm.
        device: where both are.
    """

    network: DeterministicNetwork
    target: DeterministicNetwork

    def __init__(
        self,
        online: DeterministicNetwork,
        target: DeterministicNetwork,
        config: ApexDPGConfig,
        device: torch.device,
    ) -> None:
        super().__init__(online, target, config.target_update_period, device)
        self._config = config
        actor = msgspec.structs.replace(config, learning_rate=config.actor_learning_rate)
        self._critic = Optimization(self.network.critic, config)
        self._actor = Optimization(self.network.actor, actor)

    def update(
        self, batch: BatchArrays
    ) -> tuple[npt.NDArray[np.float64], dict[str, float | Tensor]]:
        tensors = self.tensors(batch)
        td_errors, metrics = self._improve_critic(tensors)
        actor_metrics = self._improve_actor(tensors["observation"])
        metrics = {
            **metrics,
            **actor_metrics,
            "skipped_updates": float(self._critic.skipped + self._actor.skipped),
        }
        self.follow(self._critic.updates)
        return td_errors.abs().double().cpu().numpy(), metrics

    def _improve_critic(
        self, tensors: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, float | Tensor]]:
        network, target = self.network, self.target
        q_tm1 = network.critic(tensors["observation"], network.from_environment(tensors["action"]))
        with torch.no_grad():
            best = target.actor(tensors["next_observation"])
            q_t = target.critic(tensors["next_observation"], best)
        td_errors = td_error(q_tm1, tensors["n_step_return"], tensors["discount"], q_t)
        weights = importance_weights(
            tensors["probability"], self._config.importance_sampling_exponent
        )
        losses = (squared_loss if self._config.loss == "squared" else huber_loss)(td_errors)
        loss = (weights * losses).mean()
        metrics = self._critic.step(loss)
        td_errors, q_tm1 = td_errors.detach(), q_tm1.detach()
        return td_errors, {
            **metrics,
            "loss": loss.detach(),
            "td_error": td_errors.abs().mean(),
            "q_mean": q_tm1.mean(),
            "q_max": q_tm1.max(),
            "importance_weight_mean": weights.mean(),
        }

    def _improve_actor(self, observations: Tensor) -> dict[str, float | Tensor]:
        actions = self.network.actor(observations)
        taken = actions.detach().requires_grad_()
        values = self.network.critic(observations, taken)
        (gradients,) = torch.autograd.grad(values.sum(), taken)
        loss = deterministic_policy_gradient_loss(
            actions, gradients, self._config.action_gradient_clip
        ).mean()
        metrics = self._actor.step(loss)
        return {
            "actor_gradient_norm": metrics["gradient_norm"],
            "actor_loss": loss.detach(),
            "action_saturation": (taken.detach().abs() > 0.97).float().mean(),
        }

    def state_dict(self) -> dict[str, Any]:
        optimizations = {"critic": self._critic.state_dict(), "actor": self._actor.state_dict()}
        return {**super().state_dict(), **optimizations}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._critic.load_state_dict(state["critic"])
        self._actor.load_state_dict(state["actor"])
        super().load_state_dict(state)
