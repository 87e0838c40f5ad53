"""Recurrent dueling Q-network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from apex.envs.spec import EnvSpec
from apex.networks.full_precision import OutputLayer
from apex.networks.recurrent_cores import SequenceInputs
from apex.networks.sequence import Layers, SequenceNetwork
from apex.networks.torsos import DEFAULT_ENCODERS, Encoders, mlp
from apex.ops.double_q_learning import dueling_values


class RecurrentDuelingQNetwork(SequenceNetwork):
    """Q-values of each step of sequences (Kapturowski et al., 2019, section 2.3).

    Args:
        spec: specification of an environment with discrete actions.
        layers: the layers below the dueling streams.
        stream_hidden: units in each fully connected layer of one dueling stream.
        encoders: see `torso`.
    """

    def __init__(
        self,
        spec: EnvSpec,
        layers: Layers,
        stream_hidden: Sequence[int],
        encoders: Encoders = DEFAULT_ENCODERS,
    ) -> None:
        super().__init__(spec, layers, encoders)
        self.value, value_features = mlp(self.core.out_features, stream_hidden)
        self.value.append(OutputLayer(value_features, 1))
        self.advantage, advantage_features = mlp(self.core.out_features, stream_hidden)
        self.advantage.append(OutputLayer(advantage_features, spec.num_actions))

    def forward(self, inputs: SequenceInputs) -> tuple[Tensor, Tensor]:
        """Q-values `[B, L, A]`, and the recurrent state after the last step."""
        features, core_state = self.features(inputs)
        flat = features.flatten(0, 1)
        q_values = dueling_values(self.value(flat), self.advantage(flat))
        return q_values.view(*features.shape[:2], -1), core_state
