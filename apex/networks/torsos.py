"""Torsos: encoders from observations to features."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from apex.envs.spec import EnvSpec, ObservationPart
from apex.errors import ConfigError

ConvLayers = Sequence[tuple[int, int, int]]
"""Output channels, kernel size and stride of each convolution."""


class ImageTorso(nn.Module):
    """Convolutions over stacked uint8 frames. Only this class scales frames to floats.

    Args:
        spec: specification of an environment with plain frames; an observation is `[S, H, W]`,
            `[S, H, W, C]` or `[S, C, H, W]`.
        layers: the convolutions, each followed by a ReLU.
        residual: channels of each section of a residual network; if not empty, it is used instead
            of `layers`.
        standardize: normalise each stack of frames to mean 0 and variance 1 instead of scaling it
            by 1/255. Without it, large optimizer steps can change the response to a bright
            background by more than a small object, such as a ball, contributes.
        key: the key of the configuration that has the layers, for messages.
    """

    def __init__(
        self,
        spec: EnvSpec,
        layers: ConvLayers,
        standardize: bool = False,
        residual: Sequence[int] = (),
        key: str = "algorithm.conv",
    ) -> None:
        super().__init__()
        self._standardize = standardize
        shape = spec.observation_shape
        self._channels_last = spec.all_parts[0].channels_last
        planes = math.prod(shape) // math.prod(self._image_size(shape))
        channels = spec.frame_stack * planes
        size = self._image_size(shape)
        if residual:
            self.convolutions = residual_layers(channels, residual)
            channels = residual[-1]
            size = tuple(-(-edge // 2 ** len(residual)) for edge in size)
        else:
            self.convolutions, channels, size = _convolutions(channels, size, layers, key)
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
    channels: int, size: tuple[int, ...], layers: ConvLayers, key: str
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
                f"{key}: frames of {size} pixels are too small for the convolutions "
                f"{list(layers)}; use smaller kernels, such as {key} = [[32, 3, 1]]"
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
        numbers = observations.reshape(len(observations), -1)
        return numbers * (1.0 / 255.0) if self._scaled else numbers.float()


class ChoicesTorso(nn.Module):
    """Encodes integers: an embedding of each, or its value if all are 0 or 1.

    Args:
        choices: number of values of each integer, in row-major order.
    """

    begins: Tensor
    MAX_WIDTH = 32
    """Most numbers in an embedding; a choice of fewer values has as many as values."""

    def __init__(self, choices: Sequence[int]) -> None:
        super().__init__()
        self._is_binary = set(choices) == {2}
        width = min(max(choices, default=1), self.MAX_WIDTH)
        self.out_features = len(choices) * (1 if self._is_binary else width)
        if not self._is_binary:
            self.embedding = nn.Embedding(sum(choices), width)
            begins = torch.tensor([0, *choices[:-1]]).cumsum(0)
            self.register_buffer("begins", begins, persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        """`[B, ...]` integers to `[B, out_features]`."""
        flat = values.reshape(len(values), -1)
        if self._is_binary:
            return flat.float()
        features: Tensor = self.embedding(flat.long() + self.begins).flatten(1)
        return features


def features_of(module: nn.Module) -> int:
    """The number of a torso's features, its `out_features`.

    Raises:
        ConfigError: it does not have one.
    """
    number = getattr(module, "out_features", None)
    if not isinstance(number, int):
        raise ConfigError(
            f"{type(module).__name__}: expected the attribute out_features, the number of its "
            f"features, got {number!r}; an encoder that part_encoder returns must have it"
        )
    return number


class JoinedTorso(nn.Module):
    """Encodes each part of an observation by its own module and joins their features.

    Args:
        encoders: module of each part, by the part's name.
    """

    def __init__(self, encoders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._names = list(encoders)
        self.parts = nn.ModuleList(encoders.values())
        self.out_features = sum(map(features_of, encoders.values()))

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Features `[B, out_features]` of the parts, `[B, ...]` each."""
        return torch.cat([m(observations[n]) for n, m in zip(self._names, self.parts)], dim=1)


class Encoders(NamedTuple):
    """What replaces the default encoders of the parts of an observation."""

    conv: Mapping[str, ConvLayers] = MappingProxyType({})
    """Convolutions of some images, by name (`algorithm.conv_by_part`)."""
    make: Callable[[ObservationPart], nn.Module | None] = lambda part: None
    """Makes the encoder of a part (`Algorithm.part_encoder`); None: the default."""


DEFAULT_ENCODERS = Encoders()


def torso(
    spec: EnvSpec,
    conv: ConvLayers,
    standardize: bool = False,
    residual: Sequence[int] = (),
    encoders: Encoders = DEFAULT_ENCODERS,
) -> nn.Module:
    """Make the torso for an environment; its `out_features` is the number of its features.

    Args:
        spec: specification of the environment.
        conv, standardize, residual: arguments of `ImageTorso`; unused without frames.
        encoders: replaces the defaults of some parts.

    Raises:
        ConfigError: the convolutions do not fit the images, or `encoders` names no part.
    """
    names = [part.name for part in spec.images if part.name]
    unknown = encoders.conv.keys() - set(names)
    if unknown:
        raise ConfigError(
            f"algorithm.conv_by_part: expected names of images, got {', '.join(sorted(unknown))}; "
            f"{spec.env_id} has {', '.join(names) or 'none with a name'}"
        )
    made = {}
    for part in spec.all_parts:
        if part.kind == "mask":
            continue
        own = encoders.make(part)
        if own is None:
            layers = encoders.conv.get(part.name, conv)
            own = _default_encoder(spec, part, layers, standardize, residual)
        made[part.name] = own
    return JoinedTorso(made) if spec.parts else made[""]


def _default_encoder(
    spec: EnvSpec,
    part: ObservationPart,
    conv: ConvLayers,
    standardize: bool,
    residual: Sequence[int],
) -> nn.Module:
    if part.kind == "choices":
        return ChoicesTorso(part.choices)
    alone = spec.of_part(part)
    if part.kind == "vector":
        return VectorTorso(alone)
    key = f"algorithm.conv_by_part.'{part.name}'" if part.name else "algorithm.conv"
    return ImageTorso(alone, conv, standardize, residual, key)


def mlp(in_features: int, hidden: Sequence[int]) -> tuple[nn.Sequential, int]:
    """Fully connected layers with ReLU, and the number of their output features."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(in_features, width), nn.ReLU()]
        in_features = width
    return nn.Sequential(*layers), in_features
