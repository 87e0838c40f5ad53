"""The dueling Q-network with memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from apex.networks.cores import SequenceInputs, make_core
from apex.networks.torsos import ConvLayers, ImageTorso, VectorTorso, mlp
from apex.ops.q_learning import dueling_values
from apex.types import EnvSpec


class RecurrentDuelingQNetwork(nn.Module):
    """Q-values of each step of sequences (Kapturowski et al., 2019, section 2.3).

    Args:
        spec: of the environment; its actions are discrete.
        conv: convolutions, for environments with frames.
        residual: channels of a residual network's sections, instead of `conv`.
        hidden: widths of the layers after the torso.
        lstm: width of the LSTM after those; 0: none.
        stream_hidden: widths of the layers that each dueling stream has of its own.
        standardize: gives each stack of frames mean 0 and variance 1.
    """

    def __init__(
        self,
        spec: EnvSpec,
        conv: ConvLayers,
        residual: Sequence[int],
        hidden: Sequence[int],
        lstm: int,
        stream_hidden: Sequence[int],
        standardize: bool = False,
    ) -> None:
        super().__init__()
        self.torso = (
            ImageTorso(spec, conv, standardize, residual) if spec.frame_stack else VectorTorso(spec)
        )
        self.shared, features = mlp(self.torso.out_features, hidden)
        self.core = make_core(features, spec.num_actions, lstm)
        self.value, value_features = mlp(self.core.out_features, stream_hidden)
        self.value.append(nn.Linear(value_features, 1))
        self.advantage, advantage_features = mlp(self.core.out_features, stream_hidden)
        self.advantage.append(nn.Linear(advantage_features, spec.num_actions))

    def forward(self, inputs: SequenceInputs) -> tuple[Tensor, Tensor]:
        """Q-values `[B, L, A]`, and the core's state after the last step."""
        observations = inputs.observations
        features = self.shared(self.torso(observations.flatten(0, 1)))
        features, core_state = self.core(features.unflatten(0, observations.shape[:2]), inputs)
        flat = features.flatten(0, 1)
        q_values = dueling_values(self.value(flat), self.advantage(flat))
        return q_values.view(*observations.shape[:2], -1), core_state
