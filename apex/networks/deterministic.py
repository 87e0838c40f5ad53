"""A deterministic actor and its critic, with separate torsos."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from apex.envs.spec import EnvSpec
from apex.networks.full_precision import OutputLayer
from apex.networks.torsos import DEFAULT_ENCODERS, ConvLayers, Encoders, features_of, mlp, torso


@dataclass(frozen=True)
class DeterministicLayers:
    """The layers of a `DeterministicNetwork`.

    Args:
        conv: the convolutions, for environments with frames.
        actor_hidden, critic_hidden: units in each fully connected layer; at least one layer each.
        standardize: normalise each stack of frames to mean 0 and variance 1.
        encoders: see `torso`.
    """

    conv: ConvLayers
    actor_hidden: Sequence[int]
    critic_hidden: Sequence[int]
    standardize: bool = False
    encoders: Encoders = DEFAULT_ENCODERS


def _head(in_features: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """A first layer with layer normalisation and tanh, further ReLU layers, and a linear output.

    The output layer is initialised near 0: initial actions are near the middle of their range and
    initial values near 0.
    """
    first, *rest = hidden
    relu_layers, features = mlp(first, rest)
    last = OutputLayer(features, outputs)
    nn.init.uniform_(last.weight, -3e-3, 3e-3)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        nn.Linear(in_features, first), nn.LayerNorm(first), nn.Tanh(), *relu_layers, last
    )


class DeterministicActor(nn.Module):
    """Maps observations to actions in [-1, 1]."""

    def __init__(self, spec: EnvSpec, layers: DeterministicLayers, action_size: int) -> None:
        super().__init__()
        self.torso = torso(spec, layers.conv, layers.standardize, encoders=layers.encoders)
        self.head = _head(features_of(self.torso), layers.actor_hidden, action_size)

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """`[B, *policy_shape]`, or by name, to `[B, A]`."""
        actions: Tensor = torch.tanh(self.head(self.torso(observations)))
        return actions


class Critic(nn.Module):
    """Maps observations and actions in [-1, 1] to Q-values."""

    def __init__(self, spec: EnvSpec, layers: DeterministicLayers, action_size: int) -> None:
        super().__init__()
        self.torso = torso(spec, layers.conv, layers.standardize, encoders=layers.encoders)
        self.head = _head(features_of(self.torso) + action_size, layers.critic_hidden, 1)

    def forward(self, observations: Tensor | dict[str, Tensor], actions: Tensor) -> Tensor:
        """`[B, *policy_shape]`, or by name, and `[B, A]` to `[B]`."""
        features = torch.cat([self.torso(observations), actions], dim=1)
        values: Tensor = self.head(features).squeeze(1)
        return values


class DeterministicNetwork(nn.Module):
    """An actor and a critic. Inside, actions are flat vectors of A numbers in [-1, 1].

    The tanh after the first layer is from Horgan et al., 2018, appendix D; the layer normalisation
    before it and the separate torsos are from Barth-Maron et al., 2018.

    Args:
        spec: specification of an environment with continuous actions.
        layers: the layers of both networks.
    """

    low: Tensor
    high: Tensor

    def __init__(self, spec: EnvSpec, layers: DeterministicLayers) -> None:
        super().__init__()
        assert spec.action_bounds is not None
        self._action_shape = spec.action_bounds.shape
        action_size = math.prod(self._action_shape)
        self.actor = DeterministicActor(spec, layers, action_size)
        self.critic = Critic(spec, layers, action_size)
        for name in ("low", "high"):
            bound = torch.tensor(getattr(spec.action_bounds, name), dtype=torch.float32)
            self.register_buffer(name, bound, persistent=False)

    def to_environment(self, actions: Tensor) -> Tensor:
        """Scale actions `[B, A]` in [-1, 1] to the environment's bounds, `[B, *action shape]`."""
        scaled = self.low + (actions + 1.0) * 0.5 * (self.high - self.low)
        return torch.clamp(scaled, self.low, self.high).view(-1, *self._action_shape)

    def from_environment(self, actions: Tensor) -> Tensor:
        """Scale the environment's actions `[B, *action shape]` to [-1, 1], `[B, A]`.

        A number whose bounds are equal becomes 0.
        """
        width = self.high - self.low
        scaled = (actions.flatten(1) - self.low) / torch.where(width > 0, width, 1.0)
        return torch.where(width > 0, scaled * 2.0 - 1.0, 0.0)
