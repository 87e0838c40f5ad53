"""Actor-critic network of the comparison, as an RLlib module.

Policy and value share all layers but the last.
"""

from __future__ import annotations

from typing import Any

import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis.value_function_api import ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule
from torch import nn

from benchmarks.peers.loops.pong import CONVOLUTIONS, STREAM_WIDTH


class ActorCritic(TorchRLModule, ValueFunctionAPI):
    """Convolutions, one hidden layer, and two heads."""

    def setup(self) -> None:
        """Called by RLlib."""
        layers: list[nn.Module] = []
        channels = self.observation_space.shape[-1]
        for width, kernel, stride in CONVOLUTIONS:
            layers += [nn.Conv2d(channels, width, kernel, stride), nn.ReLU()]
            channels = width
        torso = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            shape = self.observation_space.shape
            (_, features) = torso(torch.zeros(1, shape[2], *shape[:2])).shape
        self.shared = nn.Sequential(torso, nn.Linear(features, STREAM_WIDTH), nn.ReLU())
        self.policy = nn.Linear(STREAM_WIDTH, self.action_space.n)
        self.value = nn.Linear(STREAM_WIDTH, 1)

    def _features(self, batch: dict[str, Any]) -> torch.Tensor:
        features: torch.Tensor = self.shared(batch[Columns.OBS].permute(0, 3, 1, 2).float())
        return features

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {Columns.ACTION_DIST_INPUTS: self.policy(self._features(batch))}

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        features = self._features(batch)
        return {
            Columns.ACTION_DIST_INPUTS: self.policy(features),
            Columns.EMBEDDINGS: features,
        }

    def compute_values(self, batch: dict[str, Any], embeddings: Any = None) -> torch.Tensor:
        """Values `[B]`, from the given features or computed from the batch."""
        features = self._features(batch) if embeddings is None else embeddings
        values: torch.Tensor = self.value(features)
        return values.squeeze(-1)
