"""Client of the inference server: requests the actions of one actor. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from apex.data.observations import Observations, count, to_columns
from apex.data.schema import Array, Arrays
from apex.envs.spec import EnvSpec, StepResult
from apex.errors import SchemaError
from apex.wire.client import Client
from apex.wire.endpoints import Endpoint
from apex.wire.messages import Act, Actions, Error, Hello, Leave, Welcome

RESEND_S = 2.0
"""Seconds without a reply after which a request is sent again on an open connection."""
FLAGS = ("terminated", "truncated", "life_lost")


def result_to_arrays(result: StepResult) -> Arrays:
    """Return the buffers of an `Act` for the result of a step."""
    flags = {name: getattr(result, name).astype(np.uint8) for name in FLAGS}
    return {**to_columns(result.observations), "rewards": result.rewards, **flags}


class ActClient:
    """One actor's connection to `inference.act`, with one request at a time.

    A request is repeated until it is answered. When the server has lost this actor's state, after
    a restart or a long silence, the open request is sent as the beginning of episodes, with the
    last observations.

    Args:
        endpoint: `inference.act`.
        hello: the actor's.
        spec: the environments' specification.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        hello: Hello,
        spec: EnvSpec,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.client = Client(endpoint, hello)
        self._spec = spec
        self._clock = clock
        self._instance: int | None = None
        self._slot, self._incarnation = 0, 0
        self._seq = -1
        self._request: tuple[bool, Arrays] | None = None
        """`begins` and the buffers of the unanswered request."""
        self._ended: Array = np.zeros(0, dtype=np.bool_)
        """Environments whose last observation is the end of an episode."""
        self._actions: Array | None = None
        self._sent_at = float("-inf")
        self.asked = 0
        """Requests so far, without repetitions."""

    def start(self, slot: int, incarnation: int) -> None:
        """Set slot and incarnation, from which the server derives the exploration."""
        self._slot, self._incarnation = slot, incarnation

    @property
    def answered(self) -> bool:
        """Whether the actions have arrived."""
        return self._actions is not None

    def begin(self, observations: Observations) -> None:
        """Begin episodes in all environments, with observations `[E, ...]`, or by name."""
        self._ended = np.zeros(count(observations), dtype=np.bool_)
        self._send_new(begins=True, arrays=to_columns(observations))

    def observe(self, result: StepResult) -> None:
        """Send the result of a step, and request the next actions."""
        self._ended = (result.terminated | result.truncated) & ~self._ended
        self._send_new(begins=False, arrays=result_to_arrays(result))

    def take(self) -> Array:
        """Return the actions `[E, *action shape]` for the latest observations, once."""
        actions, self._actions = self._actions, None
        assert actions is not None
        return actions

    def poll(self) -> None:
        """Process received messages; never blocks. Raises `RefusedError`."""
        for received in self.client.receive():
            message = received.message
            if isinstance(message, Actions) and message.seq == self._seq and self._request:
                self._actions = _actions(received.arrays, self._spec.no_actions(len(self._ended)))
                self._request = None
            elif isinstance(message, Welcome):
                if message.instance != self._instance:
                    self._instance = message.instance
                    self._make_request_begin()
                self._send()
            elif isinstance(message, Error) and message.code == "unknown_agent":
                self._make_request_begin()
                self._send()
        if self._request is not None and self._clock() - self._sent_at > RESEND_S:
            self._send()

    def _send_new(self, *, begins: bool, arrays: Arrays) -> None:
        self._seq += 1
        self.asked += 1
        self._request = (begins, arrays)
        self._actions = None
        self._send()

    def _make_request_begin(self) -> None:
        """Change the unanswered request into one that begins episodes."""
        if self._request is not None:
            names = self._request[1].keys() - {"rewards", "ended", *FLAGS}
            arrays = {name: array for name, array in self._request[1].items() if name in names}
            self._request = (True, {**arrays, "ended": self._ended.astype(np.uint8)})

    def _send(self) -> None:
        if self._request is not None:
            begins, arrays = self._request
            message = Act(
                seq=self._seq, begins=begins, slot=self._slot, incarnation=self._incarnation
            )
            if self.client.send(message, arrays):
                self._sent_at = self._clock()

    def leave(self) -> None:
        """Tell the server that this actor exits."""
        self.client.send(Leave())

    def close(self) -> None:
        """Close the connection."""
        self.client.close()


def _actions(arrays: Arrays, expected: Array) -> Array:
    actions = arrays.get("actions")
    if actions is None or actions.dtype != expected.dtype or actions.shape != expected.shape:
        found = "no such buffer" if actions is None else f"{actions.dtype} {actions.shape}"
        raise SchemaError(
            f"inference.act: expected actions {expected.dtype} {expected.shape}, got {found}"
        )
    return actions
