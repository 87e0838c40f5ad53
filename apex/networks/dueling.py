"""Dueling Q-network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from apex.envs.spec import EnvSpec
from apex.networks.full_precision import OutputLayer
from apex.networks.torsos import DEFAULT_ENCODERS, ConvLayers, Encoders, features_of, mlp, torso
from apex.ops.double_q_learning import dueling_values


class DuelingQNetwork(nn.Module):
    """Q-values from a shared torso, a value stream and an advantage stream (Wang et al., 2016).

    Args:
        spec: specification of an environment with discrete actions.
        conv: the convolutions, for environments with frames.
        hidden: units in each fully connected layer shared by both streams.
        stream_hidden: units in each fully connected layer of one stream.
        standardize: normalise each stack of frames to mean 0 and variance 1.
        encoders: see `torso`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        conv: ConvLayers,
        hidden: Sequence[int],
        stream_hidden: Sequence[int],
        standardize: bool = False,
        encoders: Encoders = DEFAULT_ENCODERS,
    ) -> None:
        super().__init__()
        self.torso = torso(spec, conv, standardize, encoders=encoders)
        self.shared, features = mlp(features_of(self.torso), hidden)
        self.value, value_features = mlp(features, stream_hidden)
        self.value.append(OutputLayer(value_features, 1))
        self.advantage, advantage_features = mlp(features, stream_hidden)
        self.advantage.append(OutputLayer(advantage_features, spec.num_actions))

    def forward(self, observations: Tensor | dict[str, Tensor]) -> Tensor:
        """Q-values `[B, num_actions]` of observations `[B, *policy_shape]`, or by name."""
        features = self.shared(self.torso(observations))
        return dueling_values(self.value(features), self.advantage(features))
