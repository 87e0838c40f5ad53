"""Neural networks: observation torsos and the heads on them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from apex.errors import ConfigError
from apex.ops.q_learning import dueling_values
from apex.types import EnvSpec

ConvLayers = Sequence[tuple[int, int, int]]
"""Output channels, kernel size and stride of each convolution."""


class ImageTorso(nn.Module):
    """Stacked uint8 frames, scaled here and nowhere else, through convolutions.

    Args:
        spec: of an environment with frames, `[S, H, W]`, `[S, H, W, C]` or `[S, C, H, W]`.
        layers: the convolutions, each followed by a ReLU.
        standardize: gives each stack of frames mean 0 and variance 1, instead of a factor of
            1/255. Large steps of the optimizer shake the response to a bright background by more
            than a ball adds to it.
    """

    def __init__(self, spec: EnvSpec, layers: ConvLayers, standardize: bool = False) -> None:
        super().__init__()
        self._standardize = standardize
        shape = spec.observation_shape
        self._channels_last = len(shape) == 3 and shape[-1] <= 4
        planes = math.prod(shape) // math.prod(self._image_size(shape))
        channels = spec.frame_stack * planes
        modules: list[nn.Module] = []
        size = self._image_size(shape)
        for out_channels, kernel, stride in layers:
            modules += [nn.Conv2d(channels, out_channels, kernel, stride), nn.ReLU()]
            channels = out_channels
            size = tuple((edge - kernel) // stride + 1 for edge in size)
            if min(size) < 1:
                raise ConfigError(
                    f"algorithm.conv: frames of {self._image_size(shape)} pixels are too small "
                    f"for the layers {list(layers)}"
                )
        self.convolutions = nn.Sequential(*modules)
        self.convolutions.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.out_features = channels * math.prod(size)

    def _image_size(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[:2] if self._channels_last else shape[-2:]

    def forward(self, frames: Tensor) -> Tensor:
        """`[B, S, ...] uint8` to `[B, out_features]`."""
        if self._channels_last:
            frames = frames.movedim(-1, 2)
        image = frames.flatten(1, -3).contiguous(memory_format=torch.channels_last).float()
        image = _standardized(image) if self._standardize else image * (1.0 / 255.0)
        features: Tensor = self.convolutions(image).flatten(1)
        return features


def _standardized(image: Tensor) -> Tensor:
    """`[B, C, H, W]` in memory order channels-last, each image with mean 0 and variance 1."""
    pixels = image.permute(0, 2, 3, 1)
    return nn.functional.layer_norm(pixels, pixels.shape[1:]).permute(0, 3, 1, 2)


class VectorTorso(nn.Module):
    """Observations that are no images, flattened; uint8 ones (RAM) are scaled by 1/255."""

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self._scale = 1.0 / 255.0 if spec.observation_dtype == "uint8" else 1.0
        self.out_features = math.prod(spec.observation_shape)

    def forward(self, observations: Tensor) -> Tensor:
        """`[B, ...]` to `[B, out_features]`."""
        return observations.flatten(1).float() * self._scale


def mlp(in_features: int, hidden: Sequence[int]) -> tuple[nn.Sequential, int]:
    """Fully connected layers with ReLU, and how many features come out."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(in_features, width), nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers), in_features


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
        self.torso = ImageTorso(spec, conv, standardize) if spec.frame_stack else VectorTorso(spec)
        self.shared, features = mlp(self.torso.out_features, hidden)
        self.value, value_features = mlp(features, stream_hidden)
        self.value.append(nn.Linear(value_features, 1))
        self.advantage, advantage_features = mlp(features, stream_hidden)
        self.advantage.append(nn.Linear(advantage_features, spec.num_actions))

    def forward(self, observations: Tensor) -> Tensor:
        """`[B, *policy_shape]` to `[B, num_actions]`."""
        features = self.shared(self.torso(observations))
        return dueling_values(self.value(features), self.advantage(features))
