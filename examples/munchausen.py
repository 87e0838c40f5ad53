"""Munchausen-DQN (Vieillard et al., 2020, arXiv 2007.14430), whole, as an algorithm of your own.

    apex run --algorithm examples/munchausen.py:Munchausen --env CartPole-v1

What is here is the algorithm: its settings, network, policy, exploration and update. Items,
priorities and batches are those of every algorithm that learns from n-step transitions.
"""

import numpy as np
import torch
from torch import nn

from apex.acting.decisions import Decision
from apex.acting.exploration import EpsilonGreedy, epsilon_ladder
from apex.algos.base import Policy
from apex.algos.q_learning import MAX_Q, Q_VALUE, TargetNetworkLearner
from apex.algos.transition_batches import TransitionAlgorithm, TransitionSection
from apex.config.sections import PositiveFloat, PositiveInt, UnitFloat
from apex.networks.torsos import ImageTorso, VectorTorso, mlp
from apex.ops.q_learning import huber_loss, importance_weights


class MunchausenConfig(TransitionSection, frozen=True):
    """The `[algorithm]` section: `--set algorithm.temperature=0.1` sets a key of it."""

    name: str = "examples/munchausen.py:Munchausen"
    n_step: PositiveInt = 1
    optimizer: str = "adam"
    learning_rate: PositiveFloat = 5e-4
    optimizer_epsilon: PositiveFloat = 1e-8
    max_gradient_norm: PositiveFloat = 10.0
    target_update_period: PositiveInt = 50
    hidden: tuple[PositiveInt, ...] = (128, 128)
    temperature: PositiveFloat = 0.03
    """tau, of the softmax policy."""
    munchausen_scale: UnitFloat = 0.9
    """alpha: how much of its log-policy the agent adds to the reward."""
    log_policy_floor: float = -1.0
    """The log-policy, times tau, is clipped to this and 0 before it is added."""
    epsilon: PositiveFloat = 0.4
    epsilon_alpha: PositiveFloat = 7.0


class QNetwork(nn.Module):
    """Q-values `[B, num_actions]` of observations `[B, *policy_shape]`."""

    def __init__(self, spec, config):
        super().__init__()
        self.torso = ImageTorso(spec, config.conv) if spec.frame_stack else VectorTorso(spec)
        layers, features = mlp(self.torso.out_features, config.hidden)
        self.head = nn.Sequential(*layers, nn.Linear(features, spec.num_actions))

    def forward(self, observations):
        return self.head(self.torso(observations))


class MunchausenPolicy(Policy):
    """Acts on Q-values; the values that it notes are what initial priorities are made of."""

    def __init__(self, network):
        self.network = network.eval()

    @torch.inference_mode()
    def act(self, inputs, exploration):
        q = self.network(torch.from_numpy(inputs.observations).to(self.device)).cpu().numpy()
        actions = q.argmax(axis=1) if exploration is None else exploration(q)
        extras = {Q_VALUE: q[np.arange(len(q)), actions], MAX_Q: q.max(axis=1)}
        return Decision(actions, inputs.core_state, extras)


class MunchausenLearner(TargetNetworkLearner):
    def __init__(self, online, target, config, device):
        super().__init__(online, target, config, config.target_update_period, device)
        self.config = config

    def update(self, batch):
        config, batch = self.config, self.tensors(batch)
        tau = config.temperature
        action = batch["action"].long().unsqueeze(1)
        q = self.network(batch["observation"]).gather(1, action).squeeze(1)
        with torch.no_grad():
            log_policy = torch.log_softmax(self.target(batch["observation"]) / tau, dim=1)
            bonus = tau * log_policy.gather(1, action).squeeze(1)
            bonus = bonus.clamp(config.log_policy_floor, 0.0)
            next_q = self.target(batch["next_observation"])
            log_next = torch.log_softmax(next_q / tau, dim=1)
            soft_value = (log_next.exp() * (next_q - tau * log_next)).sum(dim=1)
            reward = batch["n_step_return"] + config.munchausen_scale * bonus
            target = reward + batch["discount"] * soft_value  # discount: 0 after a termination
        td_errors = target - q
        weights = importance_weights(batch["probability"], config.importance_sampling_exponent)
        loss = (weights * huber_loss(td_errors)).mean()
        metrics = self.descend(loss)
        priorities = td_errors.detach().abs().double().cpu().numpy()
        return priorities, {**metrics, "loss": loss.detach(), "bonus": bonus.mean()}


class Munchausen(TransitionAlgorithm):
    Config = MunchausenConfig

    def exploration(self, positions, ladder_size, seeds):
        config = self.config
        epsilons = epsilon_ladder(positions, ladder_size, config.epsilon, config.epsilon_alpha)
        return EpsilonGreedy(epsilons, self.spec.num_actions, seeds)

    def policy(self):
        return MunchausenPolicy(QNetwork(self.spec, self.config))

    def learner(self, device):
        networks = [QNetwork(self.spec, self.config) for _ in range(2)]
        return MunchausenLearner(*networks, self.config, device)
