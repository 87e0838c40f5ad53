"""Parameters as bytes: safetensors, of a network and back."""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
import safetensors.torch
import torch
from torch import Tensor, nn

from apex.errors import CheckpointError

LENGTH_BYTES = 8
"""Of the header's length, which stands first."""
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By their names in safetensors."""


class _Described(msgspec.Struct, frozen=True):
    """A tensor, as the header describes it."""

    dtype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    data_offsets: tuple[int, int]


_header_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def encode(network: nn.Module) -> bytes:
    """The parameters and buffers of a network as safetensors bytes."""
    tensors = {
        name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()
    }
    return safetensors.torch.save(tensors)


def decode(data: bytes | memoryview) -> dict[str, Tensor]:
    """Tensors by name; where the bytes can be written to, they are views of them.

    An actor only copies them into its network: safetensors' own copies would cost as much again.

    Raises:
        CheckpointError: the bytes are corrupt.
    """
    view = memoryview(data)
    if view.readonly:  # torch wants tensors that can be written to
        view = memoryview(bytearray(view))
    try:
        begin = LENGTH_BYTES + int.from_bytes(view[:LENGTH_BYTES], "little")
        header = _header_decoder.decode(view[LENGTH_BYTES:begin])
        header.pop("__metadata__", None)
        body = view[begin:]
        return {
            name: _tensor(msgspec.json.decode(described, type=_Described), body)
            for name, described in header.items()
        }
    except (msgspec.MsgspecError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"parameters: {type(error).__name__}: {error}") from None


def _tensor(described: _Described, body: memoryview) -> Tensor:
    begin, end = described.data_offsets
    dtype, count = DTYPES[described.dtype], math.prod(described.shape)
    if not 0 <= begin <= end <= len(body) or end - begin != count * dtype.itemsize:
        raise ValueError(f"{described} does not fit {len(body)} bytes")
    if not count:
        return torch.empty(described.shape, dtype=dtype)
    return torch.frombuffer(body, dtype=dtype, count=count, offset=begin).view(described.shape)
