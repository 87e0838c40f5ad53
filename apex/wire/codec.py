"""Messages to frames and back: one msgpack header, then one raw buffer for each declared array."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import msgspec
import numpy as np

from apex.errors import DecodeError
from apex.types import Array, Arrays
from apex.wire.messages import PROTOCOL_VERSION, AnyMessage, Buffer, Message

MAX_HEADER_BYTES = 1024 * 1024
MAX_BUFFERS = 64
DTYPES = frozenset({"uint8", "int32", "int64", "float32", "float64"})

Frame: TypeAlias = bytes | memoryview


class _Envelope(msgspec.Struct, frozen=True):
    """What every protocol version has in common: which version it is."""

    protocol: int


_envelope_decoder = msgspec.msgpack.Decoder(_Envelope)
_decoder = msgspec.msgpack.Decoder(AnyMessage)
_encoder = msgspec.msgpack.Encoder()


@dataclass(frozen=True)
class Received:
    """A decoded message. The arrays are read-only views of the received frames."""

    message: AnyMessage
    arrays: Arrays = field(default_factory=dict)


def encode(message: Message, arrays: Mapping[str, Array] | None = None) -> list[Frame]:
    """Encode a header and its arrays.

    Args:
        message: the header; its `buffers` are declared here.
        arrays: C-contiguous or not, of a dtype in `DTYPES`; opaque bytes are uint8 of rank 1.

    Returns:
        The frames to send; buffer frames are views of the arrays' memory.
    """
    if not arrays:
        return [_encoder.encode(message)]
    contiguous = {
        name: np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        for name, array in arrays.items()
    }
    declared = tuple(
        Buffer(name, array.dtype.name, arrays[name].shape) for name, array in contiguous.items()
    )
    header = _encoder.encode(msgspec.structs.replace(message, buffers=declared))
    return [header, *(array.reshape(-1).view(np.uint8).data for array in contiguous.values())]


def decode(frames: Sequence[Frame]) -> Received:
    """Decode frames, believing nothing that the header declares until it has been checked.

    Raises:
        DecodeError: with the code `malformed` or `protocol_version`.
    """
    if not frames:
        raise DecodeError("expected at least a header frame, got none")
    header = frames[0]
    if len(header) > MAX_HEADER_BYTES:
        raise DecodeError(f"header of {len(header)} bytes, at most {MAX_HEADER_BYTES} are allowed")
    try:
        version = _envelope_decoder.decode(header).protocol
        if version != PROTOCOL_VERSION:
            raise DecodeError(
                f"protocol version {version}, this side speaks {PROTOCOL_VERSION}; "
                "run the same apex on both sides",
                code="protocol_version",
            )
        message = _decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"header: {error}") from None
    declared = message.buffers
    if len(declared) > MAX_BUFFERS or len(frames) != 1 + len(declared):
        raise DecodeError(f"{len(declared)} buffers declared, {len(frames) - 1} received")
    arrays = {b.name: _array(b, frame) for b, frame in zip(declared, frames[1:])}
    if len(arrays) != len(declared):
        raise DecodeError("two buffers have the same name")
    return Received(message, arrays)


def _array(buffer: Buffer, frame: Frame) -> Array:
    if buffer.dtype not in DTYPES:
        raise DecodeError(f"buffer '{buffer.name}': dtype '{buffer.dtype}' is not allowed")
    if any(size < 0 for size in buffer.shape) or len(buffer.shape) > 8:
        raise DecodeError(f"buffer '{buffer.name}': bad shape {buffer.shape}")
    dtype = np.dtype(buffer.dtype).newbyteorder("<")
    expected = math.prod(buffer.shape) * dtype.itemsize
    if expected != len(frame):
        raise DecodeError(
            f"buffer '{buffer.name}': {buffer.dtype} {buffer.shape} takes {expected} bytes, "
            f"got {len(frame)}"
        )
    try:
        return np.frombuffer(frame, dtype=dtype).reshape(buffer.shape)
    except (ValueError, OverflowError) as error:
        raise DecodeError(f"buffer '{buffer.name}': shape {buffer.shape}: {error}") from None
