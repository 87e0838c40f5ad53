"""Encode a network's parameters as safetensors bytes, and decode them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

import msgspec
import safetensors.torch
import torch
from torch import Tensor, nn

from apex.errors import CheckpointError

LENGTH_BYTES = 8
"""Size of the first field, the header's length."""
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
"""torch dtypes by their safetensors names."""


class _TensorEntry(msgspec.Struct, frozen=True):
    """The header's entry of one tensor."""

    dtype: str
    shape: tuple[Annotated[int, msgspec.Meta(ge=0)], ...]
    data_offsets: tuple[int, int]


_header_decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])


def encode(network: nn.Module) -> bytes:
    """The parameters and buffers of a network as safetensors bytes."""
    return encode_tensors(network.state_dict())


def encode_tensors(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors by name as safetensors bytes."""
    return safetensors.torch.save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    )


def decode(data: bytes | memoryview) -> dict[str, Tensor]:
    """Decode tensors by name. They are views of `data` if it is writable, else of a copy.

    safetensors' own decoder would copy every tensor, although an actor only copies them into its
    network.

    Raises:
        CheckpointError: the bytes are corrupt.
    """
    view = memoryview(data)
    if view.readonly:  # torch tensors need writable memory
        view = memoryview(bytearray(view))
    try:
        begin = LENGTH_BYTES + int.from_bytes(view[:LENGTH_BYTES], "little")
        header = _header_decoder.decode(view[LENGTH_BYTES:begin])
        header.pop("__metadata__", None)
        body = view[begin:]
        return {
            name: _tensor(msgspec.json.decode(entry, type=_TensorEntry), body)
            for name, entry in header.items()
        }
    except (msgspec.MsgspecError, ValueError, RuntimeError, KeyError) as error:
        raise CheckpointError(f"parameters: {type(error).__name__}: {error}") from None


def _tensor(entry: _TensorEntry, body: memoryview) -> Tensor:
    begin, end = entry.data_offsets
    dtype, count = DTYPES[entry.dtype], math.prod(entry.shape)
    if not 0 <= begin <= end <= len(body) or end - begin != count * dtype.itemsize:
        raise ValueError(
            f"{entry.dtype} {entry.shape} at bytes {begin} to {end} does not fit the data, which "
            f"has {len(body)} bytes"
        )
    if not count:
        return torch.empty(entry.shape, dtype=dtype)
    return torch.frombuffer(body, dtype=dtype, count=count, offset=begin).view(entry.shape)
