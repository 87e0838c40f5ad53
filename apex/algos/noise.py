"""Noise that a network draws for itself, as NoisyNets do."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import nn


@runtime_checkable
class Noisy(Protocol):
    """A module that draws noise."""

    def resample_noise(self, generator: torch.Generator | None) -> None:
        """Draw noise and keep it in buffers; None: none, the mean."""


def resample_noise(network: nn.Module, *, noisy: bool = True) -> None:
    """Have each module of a network that has noise draw it, where it has any.

    Args:
        network: with or without such modules.
        noisy: draw noise; else take it away.
    """
    for module in network.modules():
        if isinstance(module, Noisy):
            module.resample_noise(_generator(network) if noisy else None)


def _generator(network: nn.Module) -> torch.Generator:
    """torch's own generator of the network's device: a checkpoint has the state of the CPU's."""
    device = next(network.parameters()).device
    if device.type == "cuda":
        return torch.cuda.default_generators[device.index or 0]
    return torch.default_generator
