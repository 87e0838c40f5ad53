"""Encode messages as frames and decode them: a msgpack header, then one raw buffer per array."""

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
    """The part of a header that is the same in every protocol version: the version number."""

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
        message: the header; this function fills in its `buffers`.
        arrays: arrays by buffer name; see `apex.data.array_bytes.declare`.

    Returns:
        The frames to send; buffer frames are views of the arrays' memory.
    """
    if not arrays:
        return [_encoder.encode(message)]
    declared, frames = declare(arrays)
    return [_encoder.encode(msgspec.structs.replace(message, buffers=declared)), *frames]


def decode(frames: Sequence[Frame]) -> Received:
    """Decode frames from an untrusted peer; every declaration in the header is checked first.

    Raises:
        DecodeError: the frames are invalid; the code is `malformed` or `protocol_version`.
    """
    if not frames:
        raise DecodeError("expected at least a header frame, got none")
    header = frames[0]
    if len(header) > MAX_HEADER_BYTES:
        raise DecodeError(
            f"expected a header of at most {MAX_HEADER_BYTES} bytes, got {len(header)}"
        )
    try:
        version = _envelope_decoder.decode(header).protocol
        if version != PROTOCOL_VERSION:
            raise DecodeError(
                f"expected protocol version {PROTOCOL_VERSION}, got {version}; "
                "install the same version of apex on both sides",
                code="protocol_version",
            )
        message = _decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DecodeError(f"header: {error}") from None
    return Received(message, restore(message.buffers, frames[1:]))
