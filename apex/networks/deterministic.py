"""A deterministic actor and its critic, each with a torso of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from apex.envs.spec import EnvSpec
from apex.networks.torsos import ConvLayers, mlp, torso


@dataclass(frozen=True)
class DeterministicLayers:
    """What a `DeterministicNetwork` is made of.

    Args:
        conv: convolutions, for environments with frames.
        actor_hidden, critic_hidden: widths of the fully connected layers, at least one each.
        standardize: gives each stack of frames mean 0 and variance 1.
    """

    conv: ConvLayers
    actor_hidden: Sequence[int]
    critic_hidden: Sequence[int]
    standardize: bool = False


def _head(in_features: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """A first layer with layer normalisation and tanh, others with ReLU, and a linear last one.

    The last one begins near 0: actions in the middle of their range, values without a view.
    """
    first, *rest = hidden
    later, features = mlp(first, rest)
    last = nn.Linear(features, outputs)
    nn.init.uniform_(last.weight, -3e-3, 3e-3)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Linear(in_features, first), nn.LayerNorm(first), nn.Tanh(), *later, last
    )


class DeterministicActor(nn.Module):
    """From observations to actions between -1 and 1."""

    def __init__(self, spec: EnvSpec, layers: DeterministicLayers, num_numbers: int) -> None:
        super().__init__()
        self.torso = torso(spec, layers.conv, layers.standardize)
        self.head = _head(self.torso.out_features, layers.actor_hidden, num_numbers)

    def forward(self, observations: Tensor) -> Tensor:
        """`[B, *policy_shape]` to `[B, A]`."""
        actions: Tensor = torch.tanh(self.head(self.torso(observations)))
        return actions


class Critic(nn.Module):
    """From observations and actions between -1 and 1 to values."""

    def __init__(self, spec: EnvSpec, layers: DeterministicLayers, num_numbers: int) -> None:
        super().__init__()
        self.torso = torso(spec, layers.conv, layers.standardize)
        self.head = _head(self.torso.out_features + num_numbers, layers.critic_hidden, 1)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """`[B, *policy_shape]` and `[B, A]` to `[B]`."""
        features = torch.cat([self.torso(observations), actions], dim=1)
        values: Tensor = self.head(features).squeeze(1)
        return values


class DeterministicNetwork(nn.Module):
    """The actor and the critic; inside, each of an action's A numbers lies between -1 and 1.

    Horgan et al., 2018, appendix D, has tanh after the first layer; the layer normalisation
    before it and the separate torsos are those of Barth-Maron et al., 2018.

    Args:
        spec: of the environment; its actions are continuous.
        layers: of both.
    """

    low: Tensor
    high: Tensor

    def __init__(self, spec: EnvSpec, layers: DeterministicLayers) -> None:
        super().__init__()
        assert spec.action_bounds is not None
        self._action_shape = spec.action_bounds.shape
        num_numbers = math.prod(self._action_shape)
        self.actor = DeterministicActor(spec, layers, num_numbers)
        self.critic = Critic(spec, layers, num_numbers)
        for name in ("low", "high"):
            bound = torch.tensor(getattr(spec.action_bounds, name), dtype=torch.float32)
            self.register_buffer(name, bound, persistent=False)

    def to_environment(self, actions: Tensor) -> Tensor:
        """Actions between -1 and 1, `[B, A]`, as the environment takes them."""
        scaled = self.low + (actions + 1.0) * 0.5 * (self.high - self.low)
        return torch.clamp(scaled, self.low, self.high).view(-1, *self._action_shape)

    def from_environment(self, actions: Tensor) -> Tensor:
        """Actions as the environment takes them, `[B, *action shape]`, between -1 and 1."""
        return (actions.flatten(1) - self.low) / (self.high - self.low) * 2.0 - 1.0
