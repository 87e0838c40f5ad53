"""Target networks, updated by periodic copies or by moving averages."""

from __future__ import annotations

import torch
from torch import nn


class TargetNetwork:
    """A target network and the online network that it is updated from.

    Args:
        online: the trained network.
        target: a second network of the same architecture; it starts as a copy of `online`.
        period: learner updates between two updates of the target network.
        rate: tau in target += tau * (online - target); 1: copy.
    """

    def __init__(
        self, online: nn.Module, target: nn.Module, *, period: int = 1, rate: float = 1.0
    ) -> None:
        self._online = online
        self.network = target.requires_grad_(False)
        self.copy_online()
        self._period = period
        self._rate = rate

    def copy_online(self) -> None:
        """Copy the online network's parameters and buffers to the target network."""
        self.network.load_state_dict(self._online.state_dict())

    @torch.no_grad()
    def follow(self, updates: int) -> None:
        """Update the target network if `updates` is a multiple of the period."""
        if updates % self._period:
            return
        if self._rate == 1.0:
            self.copy_online()
            return
        own, online = self.network.state_dict(), self._online.state_dict()
        for name, tensor in own.items():
            if tensor.is_floating_point():
                tensor.lerp_(online[name], self._rate)
            else:
                tensor.copy_(online[name])
