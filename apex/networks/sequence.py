"""Base class of networks for sequences: all layers below the heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from apex.envs.spec import EnvSpec
from apex.networks.recurrent_cores import SequenceInputs, make_core
from apex.networks.torsos import ConvLayers, mlp, torso


@dataclass(frozen=True)
class Layers:
    """The layers of a `SequenceNetwork`.

    Args:
        conv: the convolutions, for environments with frames.
        residual: channels of each section of a residual network, used instead of `conv`.
        hidden: units in each fully connected layer after the torso.
        lstm: units of the LSTM after those layers; 0: no LSTM.
        standardize: normalise each stack of frames to mean 0 and variance 1.
    """

    conv: ConvLayers
    residual: Sequence[int]
    hidden: Sequence[int]
    lstm: int
    standardize: bool = False


class SequenceNetwork(nn.Module):
    """A torso and fully connected layers for each step, and a core across steps.

    Args:
        spec: specification of an environment with discrete actions.
        layers: the layers.
    """

    def __init__(self, spec: EnvSpec, layers: Layers) -> None:
        super().__init__()
        self.torso = torso(spec, layers.conv, layers.standardize, layers.residual)
        self.shared, features = mlp(self.torso.out_features, layers.hidden)
        self.core = make_core(features, spec.num_actions, layers.lstm)

    def features(self, inputs: SequenceInputs) -> tuple[Tensor, Tensor]:
        """Inputs of the heads, `[B, L, core.out_features]`, and the recurrent state after the last
        step, `[B, core_size]`."""
        observations = inputs.observations
        features = self.shared(self.torso(observations.flatten(0, 1)))
        output: tuple[Tensor, Tensor] = self.core(
            features.unflatten(0, observations.shape[:2]), inputs
        )
        return output
