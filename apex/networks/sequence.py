"""The part of a network for sequences below its heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from apex.envs.spec import EnvSpec
from apex.networks.recurrent_cores import SequenceInputs, make_core
from apex.networks.torsos import ConvLayers, mlp, torso


@dataclass(frozen=True)
class Layers:
    """What a `SequenceNetwork` is made of.

    Args:
        conv: convolutions, for environments with frames.
        residual: channels of a residual network's sections, instead of `conv`.
        hidden: widths of the layers after the torso.
        lstm: width of the LSTM after those; 0: none.
        standardize: gives each stack of frames mean 0 and variance 1.
    """

    conv: ConvLayers
    residual: Sequence[int]
    hidden: Sequence[int]
    lstm: int
    standardize: bool = False


class SequenceNetwork(nn.Module):
    """A torso for each step and a core from step to step, with or without memory.

    Args:
        spec: of the environment; its actions are discrete.
        layers: below the heads.
    """

    def __init__(self, spec: EnvSpec, layers: Layers) -> None:
        super().__init__()
        self.torso = torso(spec, layers.conv, layers.standardize, layers.residual)
        self.shared, features = mlp(self.torso.out_features, layers.hidden)
        self.core = make_core(features, spec.num_actions, layers.lstm)

    def features(self, inputs: SequenceInputs) -> tuple[Tensor, Tensor]:
        """What the heads see, `[B, L, core.out_features]`, and the core's state after the last
        step."""
        observations = inputs.observations
        features = self.shared(self.torso(observations.flatten(0, 1)))
        output: tuple[Tensor, Tensor] = self.core(
            features.unflatten(0, observations.shape[:2]), inputs
        )
        return output
