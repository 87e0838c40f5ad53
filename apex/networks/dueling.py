"""The dueling Q-network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from apex.envs.spec import EnvSpec
from apex.networks.torsos import ConvLayers, mlp, torso
from apex.ops.double_q_learning import dueling_values


class DuelingQNetwork(nn.Module):
    """Q-values by a shared torso and two streams (Wang et al., 2016).

    Args:
        spec: of the environment; its actions are discrete.
        conv: convolutions, for environments with frames.
        hidden: widths of the layers that both streams share.
        stream_hidden: widths of the layers that each stream has of its own.
        standardize: gives each stack of frames mean 0 and variance 1.
    """

    def __init__(
        self,
        spec: EnvSpec,
        conv: ConvLayers,
        hidden: Sequence[int],
        stream_hidden: Sequence[int],
        standardize: bool = False,
    ) -> None:
        super().__init__()
        self.torso = torso(spec, conv, standardize)
        self.shared, features = mlp(self.torso.out_features, hidden)
        self.value, value_features = mlp(features, stream_hidden)
        self.value.append(nn.Linear(value_features, 1))
        self.advantage, advantage_features = mlp(features, stream_hidden)
        self.advantage.append(nn.Linear(advantage_features, spec.num_actions))

    def forward(self, observations: Tensor) -> Tensor:
        """`[B, *policy_shape]` to `[B, num_actions]`."""
        features = self.shared(self.torso(observations))
        return dueling_values(self.value(features), self.advantage(features))
