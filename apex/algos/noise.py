"""Noise in the parameters of a network (NoisyNets)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class Noisy(Protocol):
    """A module with noise in its parameters."""

    def resample_noise(self, generator: torch.Generator | None) -> None:
        """Draw new noise into the buffers; without a generator set it to zero."""


def resample_noise(
    network: nn.Module, *, noisy: bool = True, generator: torch.Generator | None = None
) -> None:
    """Draw new noise in each noisy module of a network, or set it to zero.

    Args:
        network: may have no noisy modules; nothing happens then.
        noisy: draw noise; False: set it to zero, so that the mean parameters are used.
        generator: draws the noise; None: torch's default generator of the network's device.
    """
    for module in network.modules():
        if isinstance(module, Noisy):
            module.resample_noise((generator or _generator(network)) if noisy else None)


def _generator(network: nn.Module) -> torch.Generator:
    """torch's default generator of the network's device; checkpoints store the CPU's state."""
    device = next(network.parameters()).device
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
