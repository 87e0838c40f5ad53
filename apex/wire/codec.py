"""Messages to frames and back: one msgpack header, then one raw buffer for each declared array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from apex.data.array_bytes import Frame, declare, restore
from apex.data.schema import Array, Arrays
from apex.errors import DecodeError
from apex.wire.messages import PROTOCOL_VERSION, AnyMessage, Message

MAX_HEADER_BYTES = 1024 * 1024


class _Envelope(msgspec.Struct, frozen=True):
    """What every protocol version has in common: which version it is."""

    protocol: int


_envelope_decoder = msgspec.msgpack.Decoder(_Envelope)
_decoder = msgspec.msgpack.Decoder(AnyMessage)
_encoder = msgspec.msgpack.Encoder()


@dataclass(frozen=True)
class Received:
    """A decoded message. The arrays are views of the received frames."""

    message: AnyMessage
    arrays: Arrays = field(default_factory=dict)


def encode(message: Message, arrays: Mapping[str, Array] | None = None) -> list[Frame]:
    """Encode a header and its arrays.

    Args:
        message: the header; its `buffers` are declared here.
        arrays: as `apex.data.array_bytes.declare` takes them.

    Returns:
        The frames to send; buffer frames are views of the arrays' memory.
    """
    if not arrays:
        return [_encoder.encode(message)]
    declared, frames = declare(arrays)
    return [_encoder.encode(msgspec.structs.replace(message, buffers=declared)), *frames]


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
    return Received(message, restore(message.buffers, frames[1:]))
