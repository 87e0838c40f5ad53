"""Munchausen-DQN (Vieillard et al., 2020, arXiv 2007.14430): adds the log-policy to the reward.

apex run --algorithm examples/munchausen.py:Munchausen --env CartPole-v1
"""

from typing import Literal

from apex.api import (
    PositiveFloat,
    PositiveInt,
    QAlgorithm,
    Tensor,
    Transitions,
    UnitFloat,
    mlp,
    nn,
    torch,
    torso,
)


class Munchausen(QAlgorithm):
    class Config(QAlgorithm.Config, frozen=True):
        n_step: PositiveInt = 1
        loss: Literal["squared", "huber"] = "huber"
        optimizer: Literal["rmsprop", "adam"] = "adam"
        learning_rate: PositiveFloat = 5e-4
        optimizer_epsilon: PositiveFloat = 1e-8
        max_gradient_norm: PositiveFloat = 10.0
        target_update_period: PositiveInt = 50
        hidden: tuple[int, ...] = (128, 128)
        temperature: PositiveFloat = 0.03
        """Temperature tau of the softmax policy."""
        munchausen_scale: UnitFloat = 0.9
        """Scale alpha of the log-policy that is added to the reward."""
        log_policy_floor: float = -1.0
        """Lower bound of tau times the log-policy, before it is added; the upper bound is 0."""

    def network(self) -> nn.Module:
        below = torso(self.spec, self.config.conv, encoders=self.encoders())
        layers, features = mlp(below.out_features, self.config.hidden)
        return nn.Sequential(below, layers, nn.Linear(features, self.spec.num_actions))

    def td_error(self, batch: Transitions, online: nn.Module, target: nn.Module):
        config, tau = self.config, self.config.temperature

        def taken(values: Tensor) -> Tensor:
            return values.gather(1, batch.action.long().unsqueeze(1)).squeeze(1)

        with torch.no_grad():
            log_policy = torch.log_softmax(self.q_values(target, batch.observation) / tau, dim=1)
            bonus = (tau * taken(log_policy)).clamp(config.log_policy_floor, 0.0)
            next_q = self.q_values(target, batch.next_observation)
            log_next = torch.log_softmax(next_q / tau, dim=1)
            soft_value = (log_next.exp() * (next_q - tau * log_next)).sum(dim=1)
            reward = batch.n_step_return + config.munchausen_scale * bonus
            goal = reward + batch.discount * soft_value  # discount: 0 after a termination
        return goal - taken(self.q_values(online, batch.observation)), {"bonus": bonus.mean()}
