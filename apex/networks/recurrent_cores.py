"""Recurrent cores of networks for sequences, and the inputs of these networks."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from apex.data.observations import map_arrays
from apex.envs.spec import EnvSpec
from apex.networks.full_precision import full_precision


class SequenceInputs(NamedTuple):
    """Inputs of a network for sequences: B sequences of L steps."""

    observations: Tensor | dict[str, Tensor]
    """`[B, L, *policy_shape]`, or by name for an observation of parts."""
    last_actions: Tensor
    """`[B, L, *action shape] int64`, the previous step's action; 0 where an episode begins."""
    last_rewards: Tensor
    """`[B, L]`, the previous step's reward; 0 where an episode begins."""
    is_first: Tensor
    """`[B, L] bool`: an episode begins at this step; the recurrent state is reset to 0."""
    core_state: Tensor
    """`[B, core_size]`, the recurrent state before the first step."""
    episode_edges: tuple[int, ...] | None = ()
    """Steps at which an episode begins in any of the sequences, in ascending order; None: only the
    device knows them, by `is_first`."""

    def part(self, begin: int, end: int | None, core_state: Tensor) -> SequenceInputs:
        """The steps `begin` to `end` (exclusive), with the recurrent state before them."""
        stop, edges = self.is_first.shape[1] if end is None else end, self.episode_edges
        if edges is not None:
            edges = tuple(edge - begin for edge in edges if begin <= edge < stop)
        return SequenceInputs(
            map_arrays(lambda tensor: tensor[:, begin:end], self.observations),
            self.last_actions[:, begin:end],
            self.last_rewards[:, begin:end],
            self.is_first[:, begin:end],
            core_state,
            edges,
        )


class FeedForwardCore(nn.Module):
    """A core without recurrent state."""

    core_size = 0

    def __init__(self, in_features: int) -> None:
        super().__init__()
        self.out_features = in_features

    def forward(self, features: Tensor, inputs: SequenceInputs) -> tuple[Tensor, Tensor]:
        """Return the features unchanged."""
        return features, inputs.core_state


class OneHotActions(nn.Module):
    """One-hot vectors of actions that are one integer or several.

    Args:
        spec: specification of the environment.
    """

    values: Tensor
    heads: Tensor

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self._is_discrete = spec.action_bounds is None
        lows = [0] if spec.action_bounds is None else map(int, spec.action_bounds.low)
        values = [torch.arange(low, low + n) for low, n in zip(lows, spec.head_sizes)]
        heads = [torch.full_like(numbers, head) for head, numbers in enumerate(values)]
        self.register_buffer("values", torch.cat(values), persistent=False)
        self.register_buffer("heads", torch.cat(heads), persistent=False)

    def forward(self, actions: Tensor) -> Tensor:
        """`[B, L, *action shape] int64` to `[B, L, sum of head sizes] bool`."""
        if self._is_discrete:
            return actions.unsqueeze(-1) == self.values
        return actions.flatten(2).index_select(-1, self.heads) == self.values


class LSTMCore(nn.Module):
    """An LSTM over features, last actions (one-hot) and last rewards.

    Args:
        in_features: features of each step.
        spec: specification of an environment with discrete or multi-discrete actions.
        width: units of the LSTM. `core_state` is its hidden state followed by its cell state.
    """

    def __init__(self, in_features: int, spec: EnvSpec, width: int) -> None:
        super().__init__()
        self._one_hot = OneHotActions(spec)
        num_actions = sum(spec.head_sizes)
        self.lstm = nn.LSTM(in_features + num_actions + 1, width, batch_first=True)
        self.out_features = width
        self.core_size = 2 * width

    def forward(self, features: Tensor, inputs: SequenceInputs) -> tuple[Tensor, Tensor]:
        """Outputs `[B, L, width]` of features `[B, L, in_features]`, and the final state."""
        with full_precision(features.device):
            features = features.to(inputs.core_state.dtype)
            actions = self._one_hot(inputs.last_actions).to(features.dtype)
            steps = torch.cat([features, actions, inputs.last_rewards.unsqueeze(-1)], dim=-1)
            if inputs.episode_edges is None:
                return self._step_by_step(steps, inputs)
            return self._part_by_part(steps, inputs, inputs.episode_edges)

    def _step_by_step(self, steps: Tensor, inputs: SequenceInputs) -> tuple[Tensor, Tensor]:
        """Reset the state at each step where `is_first` says so."""
        (weights,) = self.lstm.all_weights
        hidden, cell = inputs.core_state.chunk(2, dim=-1)
        outputs = []
        for step, first in zip(steps.unbind(1), inputs.is_first.unsqueeze(-1).unbind(1)):
            hidden, cell = torch.where(first, 0.0, hidden), torch.where(first, 0.0, cell)
            hidden, cell = torch.lstm_cell(step, (hidden, cell), *weights)
            outputs.append(hidden)
        return torch.stack(outputs, dim=1), torch.cat([hidden, cell], dim=-1)

    def _part_by_part(
        self, steps: Tensor, inputs: SequenceInputs, episode_edges: tuple[int, ...]
    ) -> tuple[Tensor, Tensor]:
        """Split the steps where an episode begins in any of the sequences; each part is one call
        of the LSTM, which is faster."""
        edges = sorted({0, *episode_edges, steps.shape[1]})
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


def make_core(in_features: int, spec: EnvSpec, lstm: int) -> FeedForwardCore | LSTMCore:
    """An `LSTMCore` with `lstm` units; 0: a `FeedForwardCore`."""
    return LSTMCore(in_features, spec, lstm) if lstm else FeedForwardCore(in_features)
