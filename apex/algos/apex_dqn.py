"""Ape-X DQN (Horgan et al., 2018, arXiv 1803.00933): double, dueling, n-step Q-learning."""

from __future__ import annotations

import torch
from torch import nn

from apex.algos.batches import Transitions
from apex.algos.q_learning import Errors, QAlgorithm
from apex.config.sections import PositiveInt
from apex.deprecated_imports import deprecated_names
from apex.networks.dueling import DuelingQNetwork
from apex.ops.action_masks import masked_values
from apex.ops.double_q_learning import double_q_td_error


class ApexDQN(QAlgorithm):
    """Ape-X DQN for discrete actions."""

    class Config(QAlgorithm.Config, frozen=True):
        """The `[algorithm]` section; the defaults are the paper's."""

        name: str = "apex_dqn"
        hidden: tuple[PositiveInt, ...] = ()
        """Units in each fully connected layer shared by both dueling streams."""
        stream_hidden: tuple[PositiveInt, ...] = (512,)
        """Units in each fully connected layer of one dueling stream."""

    def network(self) -> nn.Module:
        config = self.config
        return DuelingQNetwork(
            self.spec,
            config.conv,
            config.hidden,
            config.stream_hidden,
            standardize=config.standardize_frames,
            encoders=self.encoders(),
        )

    def td_error(self, batch: Transitions, online: nn.Module, target: nn.Module) -> Errors:
        """Double-Q errors: `online` selects the bootstrap action, `target` evaluates it."""
        q_tm1 = self.q_values(online, batch.observation)
        with torch.no_grad():
            q_t_selector = masked_values(
                self.q_values(online, batch.next_observation), batch.next_action_mask
            )
            q_t_target = self.q_values(target, batch.next_observation)
        errors = double_q_td_error(
            q_tm1,
            batch.action.long(),
            batch.n_step_return,
            batch.discount,
            q_t_target,
            q_t_selector,
        )
        return errors, {"q_mean": q_tm1.mean(), "q_max": q_tm1.max()}


__getattr__ = deprecated_names(__name__)
