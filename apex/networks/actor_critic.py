"""A policy and a value on one torso, with or without memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from apex.networks.cores import SequenceInputs, make_core
from apex.networks.torsos import ConvLayers, ImageTorso, VectorTorso, mlp
from apex.types import EnvSpec


class ActorCriticNetwork(nn.Module):
    """Logits of a softmax policy and a state value (Espeholt et al., 2018, figure 3).

    Args:
        spec: of the environment; its actions are discrete.
        conv: convolutions, for environments with frames.
        residual: channels of a residual network's sections, instead of `conv`.
        hidden: widths of the layers after the torso.
        lstm: width of the LSTM after those; 0: none.
        standardize: gives each stack of frames mean 0 and variance 1.
    """

    def __init__(
        self,
        spec: EnvSpec,
        conv: ConvLayers,
        residual: Sequence[int],
        hidden: Sequence[int],
        lstm: int,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        self.torso = (
            ImageTorso(spec, conv, standardize, residual) if spec.frame_stack else VectorTorso(spec)
        )
        self.shared, features = mlp(self.torso.out_features, hidden)
        self.core = make_core(features, spec.num_actions, lstm)
        self.policy = nn.Linear(self.core.out_features, spec.num_actions)
        self.value = nn.Linear(self.core.out_features, 1)

    def forward(self, inputs: SequenceInputs) -> tuple[Tensor, Tensor, Tensor]:
        """Logits `[B, L, A]`, values `[B, L]`, and the core's state after the last step."""
        observations = inputs.observations
        features = self.shared(self.torso(observations.flatten(0, 1)))
        features, core_state = self.core(features.unflatten(0, observations.shape[:2]), inputs)
        return self.policy(features), self.value(features).squeeze(-1), core_state
