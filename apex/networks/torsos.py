"""Torsos: encoders from observations to features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from apex.envs.spec import EnvSpec
from apex.errors import ConfigError

ConvLayers = Sequence[tuple[int, int, int]]
"""Output channels, kernel size and stride of each convolution."""


class ImageTorso(nn.Module):
    """Convolutions over stacked uint8 frames. Only this class scales frames to floats.

    Args:
        spec: specification of an environment with frames; an observation is `[S, H, W]`,
            `[S, H, W, C]` or `[S, C, H, W]`.
        layers: the convolutions, each followed by a ReLU.
        residual: channels of each section of a residual network; if not empty, it is used instead
            of `layers`.
        standardize: normalise each stack of frames to mean 0 and variance 1 instead of scaling it
            by 1/255. Without it, large optimizer steps can change the response to a bright
            background by more than a small object, such as a ball, contributes.
    """

    def __init__(
        self,
        spec: EnvSpec,
        layers: ConvLayers,
        standardize: bool = False,
        residual: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self._standardize = standardize
        shape = spec.observation_shape
        self._channels_last = len(shape) == 3 and shape[-1] <= shape[0]
        planes = math.prod(shape) // math.prod(self._image_size(shape))
        channels = spec.frame_stack * planes
        size = self._image_size(shape)
        if residual:
            self.convolutions = residual_layers(channels, residual)
            channels = residual[-1]
            size = tuple(-(-edge // 2 ** len(residual)) for edge in size)
        else:
            self.convolutions, channels, size = _convolutions(channels, size, layers)
        self.convolutions.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.out_features = channels * math.prod(size)

    def _image_size(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[:2] if self._channels_last else shape[-2:]

    def forward(self, frames: Tensor) -> Tensor:
        """Features `[B, out_features]` of frames `[B, S, ...] uint8`."""
        if self._channels_last:
            frames = frames.movedim(-1, 2)
        # Bytes are reordered faster than floats. The product converts them in the same kernel.
        pixels = frames.flatten(1, -3).contiguous(memory_format=torch.channels_last)
        image = _standardized(pixels.float()) if self._standardize else pixels * (1.0 / 255.0)
        features: Tensor = self.convolutions(image).flatten(1)
        return features


def _convolutions(
    channels: int, size: tuple[int, ...], layers: ConvLayers
) -> tuple[nn.Sequential, int, tuple[int, ...]]:
    """Convolutions with ReLU, and the channels and size (pixels) of their output."""
    modules: list[nn.Module] = []
    out_size = size
    for out_channels, kernel, stride in layers:
        modules += [nn.Conv2d(channels, out_channels, kernel, stride), nn.ReLU()]
        channels = out_channels
        out_size = tuple((edge - kernel) // stride + 1 for edge in out_size)
        if min(out_size) < 1:
            raise ConfigError(
                f"algorithm.conv: frames of {size} pixels are too small for the convolutions "
                f"{list(layers)}; use smaller kernels, such as algorithm.conv = [[32, 3, 1]]"
            )
    return nn.Sequential(*modules), channels, out_size


def _standardized(image: Tensor) -> Tensor:
    """Normalise each image to mean 0 and variance 1; `[B, C, H, W]`, memory is channels-last."""
    pixels = image.permute(0, 2, 3, 1)
    return nn.functional.layer_norm(pixels, pixels.shape[1:]).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(relu(x)))) (He et al., 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, features: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to the same shape."""
        inner: Tensor = self.second(torch.relu(self.first(torch.relu(features))))
        return features + inner


def residual_layers(channels: int, sections: Sequence[int]) -> nn.Sequential:
    """Sections of a convolution, a max-pool that halves height and width, and two residual blocks.

    Three sections are the 15 convolutions of IMPALA's deep network (Espeholt et al., 2018,
    figure 3).
    """
    modules: list[nn.Module] = []
    for width in sections:
        modules += [
            nn.Conv2d(channels, width, 3, padding=1),
            nn.MaxPool2d(3, stride=2, padding=1),
            ResidualBlock(width),
            ResidualBlock(width),
        ]
        channels = width
    return nn.Sequential(*modules, nn.ReLU())


class VectorTorso(nn.Module):
    """Flattens observations that are not images; uint8 ones (RAM) are scaled by 1/255."""

    def __init__(self, spec: EnvSpec) -> None:
        super().__init__()
        self._scaled = spec.observation_dtype == "uint8"
        self.out_features = math.prod(spec.observation_shape)

    def forward(self, observations: Tensor) -> Tensor:
        """Flatten `[B, ...]` to `[B, out_features]`."""
        numbers = observations.flatten(1)
        return numbers * (1.0 / 255.0) if self._scaled else numbers.float()


def torso(
    spec: EnvSpec, conv: ConvLayers, standardize: bool = False, residual: Sequence[int] = ()
) -> ImageTorso | VectorTorso:
    """Make the torso for an environment: for images if it has frames, else for vectors.

    Args:
        spec: specification of the environment.
        conv, standardize, residual: arguments of `ImageTorso`; unused without frames.
    """
    if spec.frame_stack:
        return ImageTorso(spec, conv, standardize, residual)
    return VectorTorso(spec)


def mlp(in_features: int, hidden: Sequence[int]) -> tuple[nn.Sequential, int]:
    """Fully connected layers with ReLU, and the number of their output features."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(in_features, width), nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers), in_features
