"""Ape-X DPG (Horgan et al., 2018, arXiv 1803.00933): deterministic actor, n-step critic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor, nn

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.exploration import GaussianNoise, LadderPlace, noise_ladder
from apex.algos.base import Learner, Metrics, Update
from apex.algos.batches import Observation, Transitions
from apex.algos.optimization import Optimization
from apex.algos.policy import InputTensors, Policy
from apex.algos.target_network import TargetNetwork
from apex.algos.transition_batches import MAX_Q, Q_VALUE, TransitionAlgorithm
from apex.config.sections import PositiveFloat, PositiveInt
from apex.deprecated_imports import deprecated_names
from apex.networks.deterministic import DeterministicLayers, DeterministicNetwork
from apex.ops.deterministic_policy_gradient import deterministic_policy_gradient_loss, td_error
from apex.ops.double_q_learning import huber_loss, importance_weights, squared_loss

Widths = Annotated[tuple[PositiveInt, ...], msgspec.Meta(min_length=1)]


class ApexDPG(TransitionAlgorithm):
    """Ape-X DPG for bounded continuous actions."""

    class Config(TransitionAlgorithm.Config, frozen=True):
        """The `[algorithm]` section; the defaults are the paper's (appendix D)."""

        name: str = "apex_dpg"
        n_step: PositiveInt = 5
        target_update_period: PositiveInt = 100
        optimizer: Literal["rmsprop", "adam"] = "adam"
        optimizer_epsilon: PositiveFloat = 1e-8
        learning_rate: PositiveFloat = 1e-4
        """Initial learning rate of the critic."""
        actor_learning_rate: PositiveFloat = 1e-4
        """Initial learning rate of the actor; it decays on the critic's schedule."""
        action_gradient_clip: PositiveFloat = 1.0
        """Each element of dQ/da, the gradient that trains the actor, is clipped to this
        magnitude."""
        loss: Literal["squared", "huber"] = "squared"
        """Loss function of the critic's TD error."""
        noise: PositiveFloat = 0.3
        """Largest standard deviation of the action noise on the exploration ladder, as a fraction
        of half the distance between the action's bounds."""
        smallest_noise: PositiveFloat = 0.3
        """Smallest standard deviation on the ladder, in the same unit as `noise`. The paper uses
        the same noise for all actors."""
        actor_hidden: Widths = (300, 200)
        """Units in each of the actor's fully connected layers."""
        critic_hidden: Widths = (400, 300)
        """Units in each of the critic's fully connected layers."""

        def __post_init__(self) -> None:
            if self.smallest_noise > self.noise:
                raise ValueError(
                    f"smallest_noise ({self.smallest_noise}) must be at most noise ({self.noise})"
                )

    action_kinds = frozenset({"continuous"})

    def exploration(self, place: LadderPlace) -> Exploration:
        config, bounds = self.config, self.spec.action_bounds
        assert bounds is not None
        sigmas = noise_ladder(place.positions, place.size, config.noise, config.smallest_noise)
        return GaussianNoise(sigmas, *bounds.arrays(), place.seeds)

    def network(self) -> DeterministicNetwork:
        """Actor and critic with newly initialised parameters."""
        config = self.config
        layers = DeterministicLayers(
            config.conv,
            config.actor_hidden,
            config.critic_hidden,
            config.standardize_frames,
            self.encoders(),
        )
        return DeterministicNetwork(self.spec, layers)

    def policy(self) -> Policy:
        return DeterministicPolicy(self.network())

    def learner(self, device: torch.device) -> Learner:
        return DPGLearner(self, device)


class DeterministicPolicy(Policy):
    """Acts with the actor; the critic's values are used for initial priorities.

    It is one `act`, since the critic needs the explored actions, which are made on the host.
    """

    network: DeterministicNetwork

    def __init__(self, network: DeterministicNetwork) -> None:
        self.network = network.eval()

    @torch.inference_mode()
    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        network = self.network
        observations = InputTensors.of(inputs, self.device).observations
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


class DPGLearner(Learner):
    """Trains the critic on its TD error, and the actor on the critic's action gradient.

    Args:
        algorithm: makes the networks (online and target) and holds the configuration.
        device: of all networks.
    """

    network: DeterministicNetwork
    weighs_items = True

    def __init__(self, algorithm: ApexDPG, device: torch.device) -> None:
        config = algorithm.config
        self.device = device
        self.network = algorithm.network().to(device)
        self.target = algorithm.network().to(device)
        self._target_network = TargetNetwork(
            self.network, self.target, period=config.target_update_period
        )
        self._config = config
        actor_config = msgspec.structs.replace(config, learning_rate=config.actor_learning_rate)
        self._critic = Optimization(self.network.critic, config)
        self._actor = Optimization(self.network.actor, actor_config)

    def modules(self) -> dict[str, nn.Module]:
        return {"online": self.network, "target": self.target}

    def optimizations(self) -> dict[str, Optimization]:
        return {"critic": self._critic, "actor": self._actor}

    def targets(self) -> Sequence[TargetNetwork]:
        return (self._target_network,)

    def compiled_modules(self) -> Sequence[nn.Module]:
        return [part for network in (self.network, self.target) for part in network.children()]

    def update(self, batch: Transitions) -> Update:
        td_errors, metrics = self._update_critic(batch)
        actor_metrics = self._update_actor(batch.observation)
        skipped = self._critic.skipped + self._actor.skipped
        metrics = {**metrics, **actor_metrics, "skipped_updates": skipped}
        return Update(td_errors.abs(), metrics)

    def _update_critic(self, batch: Transitions) -> tuple[Tensor, Metrics]:
        network, target = self.network, self.target
        q_tm1 = network.critic(batch.observation, network.from_environment(batch.action))
        with torch.no_grad():
            best = target.actor(batch.next_observation)
            q_t = target.critic(batch.next_observation, best)
        td_errors = td_error(q_tm1, batch.n_step_return, batch.discount, q_t)
        weights = importance_weights(batch.probability, self._config.importance_sampling_exponent)
        losses = (squared_loss if self._config.loss == "squared" else huber_loss)(td_errors)
        loss = self.mean_over_items(weights * losses)
        metrics = self._critic.step(loss)
        td_errors, q_tm1 = td_errors.detach(), q_tm1.detach()
        return td_errors, {
            **metrics,
            "loss": loss.detach(),
            "td_error": td_errors.abs().mean(),
            "q_mean": q_tm1.mean(),
            "q_max": q_tm1.max(),
            "importance_weight_mean": self.mean_over_items(weights),
        }

    def _update_actor(self, observations: Observation) -> Metrics:
        actions = self.network.actor(observations)
        taken = actions.detach().requires_grad_()
        values = self.network.critic(observations, taken)
        (gradients,) = torch.autograd.grad(values.sum(), taken)
        losses = deterministic_policy_gradient_loss(
            actions, gradients, self._config.action_gradient_clip
        )
        loss = self.mean_over_items(losses)
        metrics = self._actor.step(loss)
        return {
            "actor_gradient_norm": metrics["gradient_norm"],
            "actor_loss": loss.detach(),
            "action_saturation": (taken.detach().abs() > 0.97).float().mean(),
        }


__getattr__ = deprecated_names(__name__)
