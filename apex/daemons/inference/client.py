"""How an actor asks the inference server what its environments shall do. No torch."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from apex.data.schema import Array, Arrays
from apex.envs.spec import EnvSpec, StepResult
from apex.errors import SchemaError
from apex.wire.client import Client
from apex.wire.endpoints import Endpoint
from apex.wire.messages import Act, Actions, Error, Hello, Leave, Welcome

RESEND_S = 2.0
"""Seconds without an answer after which a request is sent again on a living connection."""
FLAGS = ("terminated", "truncated", "life_lost")


def result_to_arrays(result: StepResult) -> Arrays:
    """The buffers of an `Act` that tells what a step gave."""
    flags = {name: getattr(result, name).astype(np.uint8) for name in FLAGS}
    return {"observations": result.observations, "rewards": result.rewards, **flags}


class ActClient:
    """One actor's connection to `inference.act`: one question at a time, asked until answered.

    Where the server does not know how these environments came to be where they are, since it was
    started again or has forgotten them, it begins with their last observations.

    Args:
        endpoint: `inference.act`.
        hello: of the actor.
        spec: of its environments.
        clock: seconds, monotonic.
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
        self._place = (0, 0)
        self._seq = -1
        self._question: tuple[bool, Arrays] | None = None
        self._ended: Array = np.zeros(0, dtype=np.bool_)
        self._actions: Array | None = None
        self._sent = float("-inf")
        self.asked = 0

    def start(self, slot: int, incarnation: int) -> None:
        """Take a place on the exploration ladder."""
        self._place = (slot, incarnation)

    @property
    def answered(self) -> bool:
        """Whether `take` has actions to give."""
        return self._actions is not None

    def begin(self, observations: Array) -> None:
        """Episodes begin everywhere, `[E, *observation_shape]`."""
        self._ended = np.zeros(len(observations), dtype=np.bool_)
        self._ask(begins=True, arrays={"observations": observations})

    def observe(self, result: StepResult) -> None:
        """What a step gave."""
        self._ended = (result.terminated | result.truncated) & ~self._ended
        self._ask(begins=False, arrays=result_to_arrays(result))

    def take(self) -> Array:
        """The actions `[E, *action shape]` for what was observed last; once."""
        actions, self._actions = self._actions, None
        assert actions is not None
        return actions

    def poll(self) -> None:
        """Take what has arrived; never waits. Raises `RefusedError`."""
        for received in self.client.receive():
            message = received.message
            if isinstance(message, Actions) and message.seq == self._seq and self._question:
                self._actions = _actions(received.arrays, self._spec.no_actions(len(self._ended)))
                self._question = None
            elif isinstance(message, Welcome):
                if message.instance != self._instance:
                    self._instance = message.instance
                    self._ask_again()
                self._send()
            elif isinstance(message, Error) and message.code == "unknown_agent":
                self._ask_again()
                self._send()
        if self._question is not None and self._clock() - self._sent > RESEND_S:
            self._send()

    def _ask(self, *, begins: bool, arrays: Arrays) -> None:
        self._seq += 1
        self.asked += 1
        self._question = (begins, arrays)
        self._actions = None
        self._send()

    def _ask_again(self) -> None:
        """Turn the open question into a beginning."""
        if self._question is not None:
            observations = self._question[1]["observations"]
            arrays = {"observations": observations, "ended": self._ended.astype(np.uint8)}
            self._question = (True, arrays)

    def _send(self) -> None:
        if self._question is not None:
            begins, arrays = self._question
            slot, incarnation = self._place
            message = Act(seq=self._seq, begins=begins, slot=slot, incarnation=incarnation)
            if self.client.send(message, arrays):
                self._sent = self._clock()

    def leave(self) -> None:
        """Say that this actor ends."""
        self.client.send(Leave())

    def close(self) -> None:
        """Close the connection."""
        self.client.close()


def _actions(arrays: Arrays, like: Array) -> Array:
    actions = arrays.get("actions")
    if actions is None or actions.dtype != like.dtype or actions.shape != like.shape:
        raise SchemaError(f"inference.act: expected actions {like.dtype} {like.shape}")
    return actions
