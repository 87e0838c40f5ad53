"""Parameters as bytes: safetensors, of a network and back."""

from __future__ import annotations

import safetensors
import safetensors.torch
from torch import Tensor, nn

from apex.errors import CheckpointError


def encode(network: nn.Module) -> bytes:
    """The parameters and buffers of a network as safetensors bytes."""
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    return safetensors.torch.save(tensors)


def decode(data: bytes) -> dict[str, Tensor]:
    """Tensors by name.

    Raises:
        CheckpointError: the bytes are corrupt.
    """
    try:
        return safetensors.torch.load(data)
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"parameters: {error}") from None
