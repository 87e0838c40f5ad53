"""Ape-X DPG (Horgan et al., 2018, arXiv 1803.00933): deterministic actor, critic, n-step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor, nn

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.exploration import GaussianNoise, LadderPlace, noise_ladder
from apex.algos.base import Learner, Metrics, Policy, Update
from apex.algos.batches import Transitions
from apex.algos.optimization import Optimization
from apex.algos.target_network import TargetNetwork
from apex.algos.transition_batches import MAX_Q, Q_VALUE, TransitionAlgorithm
from apex.config.sections import PositiveFloat, PositiveInt
from apex.deprecated_imports import deprecated_names
from apex.networks.deterministic import DeterministicLayers, DeterministicNetwork
from apex.ops.deterministic_policy_gradient import deterministic_policy_gradient_loss, td_error
from apex.ops.double_q_learning import huber_loss, importance_weights, squared_loss

Widths = Annotated[tuple[PositiveInt, ...], msgspec.Meta(min_length=1)]


class ApexDPG(TransitionAlgorithm):
    """Ape-X DPG for continuous actions with bounds, and image or vector observations."""

    class Config(TransitionAlgorithm.Config, frozen=True):
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
        """Standard deviation of what is added to actions, as a share of half the distance between
        their bounds: the largest of the ladder."""
        smallest_noise: PositiveFloat = 0.3
        """The smallest of the ladder; that of the paper has one rung."""
        actor_hidden: Widths = (300, 200)
        """Widths of the actor's fully connected layers."""
        critic_hidden: Widths = (400, 300)
        """Widths of the critic's fully connected layers."""

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
        """Actor and critic with fresh parameters."""
        config = self.config
        layers = DeterministicLayers(
            config.conv, config.actor_hidden, config.critic_hidden, config.standardize_frames
        )
        return DeterministicNetwork(self.spec, layers)

    def policy(self) -> Policy:
        return DeterministicPolicy(self.network())

    def learner(self, device: torch.device) -> Learner:
        return DPGLearner(self, device)


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


class DPGLearner(Learner):
    """Learns the critic by its TD error, and the actor by the critic.

    Args:
        algorithm: gives actor and critic, and a pair that follows them.
        device: where all are.
    """

    network: DeterministicNetwork

    def __init__(self, algorithm: ApexDPG, device: torch.device) -> None:
        config = algorithm.config
        self.device = device
        self.network = algorithm.network().to(device)
        self.target = algorithm.network().to(device)
        self._follower = TargetNetwork(
            self.network, self.target, period=config.target_update_period
        )
        self._config = config
        actor = msgspec.structs.replace(config, learning_rate=config.actor_learning_rate)
        self._critic = Optimization(self.network.critic, config)
        self._actor = Optimization(self.network.actor, actor)

    def modules(self) -> dict[str, nn.Module]:
        return {"online": self.network, "target": self.target}

    def optimizations(self) -> dict[str, Optimization]:
        return {"critic": self._critic, "actor": self._actor}

    def targets(self) -> Sequence[TargetNetwork]:
        return (self._follower,)

    def update(self, batch: Transitions) -> Update:
        assert isinstance(batch.observation, Tensor)
        td_errors, metrics = self._improve_critic(batch)
        actor_metrics = self._improve_actor(batch.observation)
        skipped = self._critic.skipped + self._actor.skipped
        metrics = {**metrics, **actor_metrics, "skipped_updates": skipped}
        return Update(td_errors.abs(), metrics)

    def _improve_critic(self, batch: Transitions) -> tuple[Tensor, Metrics]:
        network, target = self.network, self.target
        q_tm1 = network.critic(batch.observation, network.from_environment(batch.action))
        with torch.no_grad():
            best = target.actor(batch.next_observation)
            q_t = target.critic(batch.next_observation, best)
        td_errors = td_error(q_tm1, batch.n_step_return, batch.discount, q_t)
        weights = importance_weights(batch.probability, self._config.importance_sampling_exponent)
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

    def _improve_actor(self, observations: Tensor) -> Metrics:
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


__getattr__ = deprecated_names(__name__)
