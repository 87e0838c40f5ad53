"""Messages between an actor and the processes of its environments, through a pair of sockets.

A message is a header in MessagePack and the raw bytes of its arrays. Nothing in it is executed but
the script's own factory, which is sent only to a process that this actor has started.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from typing import TypeAlias

import msgspec
import numpy as np

from apex.config.sections import EnvConfig
from apex.data.array_bytes import Buffer, declare, restore
from apex.data.observations import OBSERVATION, Observations
from apex.data.schema import Array, Arrays
from apex.envs.spec import EnvSpec, StepResult

LENGTHS = struct.Struct("<IQ")
"""Bytes of the header, and of all arrays together."""
READ_BYTES = 1 << 20


class PipeMessage(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """Base class of the headers. `Pipe.send` fills in `buffers`."""

    buffers: tuple[Buffer, ...] = ()


class Setup(PipeMessage, frozen=True, tag="setup"):
    """To the process: the environment to make, and a script's factory or nothing."""

    env: EnvConfig
    extensions: bytes = b""


class Reset(PipeMessage, frozen=True, tag="reset"):
    """To the process: begin an episode."""

    seed: int


class Act(PipeMessage, frozen=True, tag="act"):
    """To the process: step with the array `action`."""


class Made(PipeMessage, frozen=True, tag="made"):
    """From the process: the environment has been made."""

    spec: EnvSpec


class Begun(PipeMessage, frozen=True, tag="begun"):
    """From the process: the first observation of an episode that `Reset` asked for."""


class Stepped(PipeMessage, frozen=True, tag="stepped"):
    """From the process: the result of a step."""

    reward: float
    terminated: bool
    truncated: bool
    life_lost: bool
    metrics: dict[str, float]


class Failed(PipeMessage, frozen=True, tag="failed"):
    """From the process, before it ends: what the environment did wrong."""

    reason: str
    of_algorithm: bool = False
    """Whether the algorithm did: it chose an action that a mask forbids."""


AnyPipeMessage: TypeAlias = Setup | Reset | Act | Made | Begun | Stepped | Failed


def observation_of(arrays: Arrays) -> Observations:
    """The observation that `to_columns` has named."""
    if OBSERVATION in arrays:
        return arrays[OBSERVATION]
    return {name.removeprefix(f"{OBSERVATION}."): array for name, array in arrays.items()}


def result_of(message: Stepped, arrays: Arrays) -> StepResult:
    """The result of a step of one environment."""
    return StepResult(
        observation_of(arrays),
        np.array([message.reward]),
        np.array([message.terminated]),
        np.array([message.truncated]),
        np.array([message.life_lost]),
        {name: np.array([value]) for name, value in message.metrics.items()},
    )


class Pipe:
    """One end of the pair of sockets.

    Args:
        connection: the socket, blocking or not.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._decoder = msgspec.msgpack.Decoder(AnyPipeMessage)
        self._received = bytearray()
        self._unsent = bytearray()

    def send(self, message: PipeMessage, arrays: Mapping[str, Array] | None = None) -> None:
        """Send a message, or as much as a socket that does not block takes: `flush` sends the rest.

        Raises:
            OSError: the other end is gone.
        """
        buffers, frames = declare(arrays or {})
        header = msgspec.msgpack.encode(msgspec.structs.replace(message, buffers=buffers))
        body = b"".join(frames)
        self._unsent += LENGTHS.pack(len(header), len(body)) + header + body
        self.flush()

    def flush(self) -> None:
        """Send what `send` has left, as far as the socket takes it. Raises `OSError`."""
        with suppress(BlockingIOError):
            while self._unsent:
                del self._unsent[: self.connection.send(self._unsent)]

    def receive(self) -> tuple[AnyPipeMessage, Arrays] | None:
        """The next message, if it is complete; reads once, and waits if the socket blocks.

        Raises:
            EOFError: the other end has closed it.
        """
        try:
            while not self._complete():
                read = self.connection.recv(READ_BYTES)
                if not read:
                    raise EOFError
                self._received += read
        except BlockingIOError:
            return None
        except ConnectionError:
            raise EOFError from None
        return self._take()

    def _complete(self) -> bool:
        if len(self._received) < LENGTHS.size:
            return False
        header_bytes, body_bytes = LENGTHS.unpack_from(self._received)
        whole: int = LENGTHS.size + header_bytes + body_bytes
        return len(self._received) >= whole

    def _take(self) -> tuple[AnyPipeMessage, Arrays]:
        header_bytes, body_bytes = LENGTHS.unpack_from(self._received)
        begin = LENGTHS.size + header_bytes
        message = self._decoder.decode(self._received[LENGTHS.size : begin])
        frames, position = [], begin
        for buffer in message.buffers:
            frames.append(bytes(self._received[position : position + buffer.nbytes]))
            position += buffer.nbytes
        del self._received[: begin + body_bytes]
        return message, restore(message.buffers, frames)

    def close(self) -> None:
        """Close this end."""
        self.connection.close()
