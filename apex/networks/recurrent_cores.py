"""Recurrent cores: what networks for sequences remember from step to step."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn


class SequenceInputs(NamedTuple):
    """What a network for sequences sees: B sequences of L steps."""

    observations: Tensor
    """`[B, L, *policy_shape]`."""
    last_actions: Tensor
    """`[B, L] int64`, of the step before; 0 where an episode begins."""
    last_rewards: Tensor
    """`[B, L]`, of the step before; 0 where an episode begins."""
    is_first: Tensor
    """`[B, L] bool`: an episode begins, and nothing before it is remembered."""
    core_state: Tensor
    """`[B, core_size]`, before the first step."""
    episode_edges: tuple[int, ...] = ()
    """Steps at which an episode begins in any of the sequences, rising."""

    def part(self, begin: int, end: int | None, core_state: Tensor) -> SequenceInputs:
        """Some of the steps, with the state before them."""
        stop = self.is_first.shape[1] if end is None else end
        return SequenceInputs(
            self.observations[:, begin:end],
            self.last_actions[:, begin:end],
            self.last_rewards[:, begin:end],
            self.is_first[:, begin:end],
            core_state,
            tuple(edge - begin for edge in self.episode_edges if begin <= edge < stop),
        )


class FeedForwardCore(nn.Module):
    """Remembers nothing."""

    core_size = 0

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.out_features = in_features

    def forward(self, features: Tensor, inputs: SequenceInputs) -> tuple[Tensor, Tensor]:
        """The features as they are."""
        return features, inputs.core_state


class LSTMCore(nn.Module):
    """An LSTM over features, last actions and last rewards.

    Args:
        in_features: of each step.
        num_actions: last actions are one-hot.
        width: of the LSTM; its two states are one after the other in `core_state`.
    """

    def __init__(self, in_features: int, num_actions: int, width: int) -> None:
        super().__init__()
        self._num_actions = num_actions
        self.lstm = nn.LSTM(in_features + num_actions + 1, width, batch_first=True)
        self.out_features = width
        self.core_size = 2 * width

    def forward(self, features: Tensor, inputs: SequenceInputs) -> tuple[Tensor, Tensor]:
        """`[B, L, in_features]` to `[B, L, width]`, and the state after the last step.

        Steps between two beginnings of episodes, anywhere in the batch, are one call.
        """
        numbers = torch.arange(self._num_actions, device=features.device)
        actions = (inputs.last_actions.unsqueeze(-1) == numbers).to(features.dtype)
        steps = torch.cat([features, actions, inputs.last_rewards.unsqueeze(-1)], dim=-1)
        edges = sorted({0, *inputs.episode_edges, steps.shape[1]})
        state, outputs = inputs.core_state, []
        for begin, end in pairwise(edges):
            state = torch.where(inputs.is_first[:, begin, None], 0.0, state)
            hidden, cell = state.unsqueeze(0).chunk(2, dim=-1)
            output, (hidden, cell) = self.lstm(
                steps[:, begin:end], (hidden.contiguous(), cell.contiguous())
            )
            outputs.append(output)
            state = torch.cat([hidden, cell], dim=-1).squeeze(0)
        return torch.cat(outputs, dim=1), state


def make_core(in_features: int, num_actions: int, lstm: int) -> FeedForwardCore | LSTMCore:
    """An LSTM of that width, or with 0 a core without memory."""
    return LSTMCore(in_features, num_actions, lstm) if lstm else FeedForwardCore(in_features)
