"""Base class of networks for sequences: all layers below the heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from apex.data.observations import map_arrays
from apex.envs.spec import EnvSpec
from apex.networks.recurrent_cores import SequenceInputs, make_core
from apex.networks.torsos import DEFAULT_ENCODERS, ConvLayers, Encoders, features_of, mlp, torso


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
        spec: specification of an environment with discrete or multi-discrete actions.
        layers: the layers.
        encoders: see `torso`.
    """

    def __init__(
        self, spec: EnvSpec, layers: Layers, encoders: Encoders = DEFAULT_ENCODERS
    ) -> None:
        super().__init__()
        self.torso = torso(spec, layers.conv, layers.standardize, layers.residual, encoders)
        self.shared, features = mlp(features_of(self.torso), layers.hidden)
        self.core = make_core(features, spec, layers.lstm)

    def features(self, inputs: SequenceInputs) -> tuple[Tensor, Tensor]:
        """Inputs of the heads, `[B, L, core.out_features]`, and the recurrent state after the last
        step, `[B, core_size]`."""
        steps = map_arrays(lambda tensor: tensor.flatten(0, 1), inputs.observations)
        features = self.shared(self.torso(steps))
        output: tuple[Tensor, Tensor] = self.core(
            features.unflatten(0, inputs.is_first.shape), inputs
        )
        return output
