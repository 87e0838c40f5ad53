"""Parts of a network that compute in float32 where the rest computes in bfloat16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def full_precision(device: torch.device) -> AbstractContextManager[object]:
    """A context in which operations on a device use the dtypes of their inputs."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


class OutputLayer(nn.Linear):
    """A linear layer that always computes in float32.

    Values, logits and actions are differences of similar numbers, for which the 8 significant bits
    of bfloat16 are too few.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[..., in_features]` to `[..., out_features] float32`."""
        with full_precision(input.device):
            return super().forward(input.to(self.weight.dtype))
