"""Target networks: they follow the network that is trained, by copies or by averages."""

from __future__ import annotations

import torch
from torch import nn


class TargetNetwork:
    """A network that follows another one.

    Args:
        online: the network that is trained.
        target: another one of its kind; it starts as a copy and is never trained itself.
        period: updates between two steps towards the online network.
        rate: tau, of such a step: target += tau * (online - target); 1 copies.
    """

    def __init__(
        self, online: nn.Module, target: nn.Module, *, period: int = 1, rate: float = 1.0
    ) -> None:
        self._online = online
        self.network = target.requires_grad_(False)
        self.network.load_state_dict(online.state_dict())
        self._period = period
        self._rate = rate

    @torch.no_grad()
    def follow(self, updates: int) -> None:
        """Take a step towards the online network where a period ends with this update."""
        if updates % self._period:
            return
        if self._rate == 1.0:
            self.network.load_state_dict(self._online.state_dict())
            return
        own, online = self.network.state_dict(), self._online.state_dict()
        for name, tensor in own.items():
            if tensor.is_floating_point():
                tensor.lerp_(online[name], self._rate)
            else:
                tensor.copy_(online[name])
