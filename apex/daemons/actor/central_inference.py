"""Inference in another process: the actor steps environments, and needs no torch."""

from __future__ import annotations

from typing import Any

from apex.daemons.inference.client import ActClient
from apex.daemons.learner.parameter_versions import Publication
from apex.daemons.service import Service
from apex.data.schema import Array
from apex.envs.spec import StepResult
from apex.wire.client import Client
from apex.wire.messages import Phase


class CentralInference:
    """Asks the inference server what to do; what comes of it is that server's to insert.

    Args:
        service: of the actor.
    """

    learner_step = 0

    def __init__(self, service: Service) -> None:
        self._act = ActClient(
            service.endpoints.of("inference.act"), service.hello(), service.facts.env
        )

    @property
    def client(self) -> Client:
        """The connection whose messages `poll` takes."""
        return self._act.client

    @property
    def ready(self) -> bool:
        """Whether the server is there."""
        return self._act.client.ready

    def start(self, slot: int, incarnation: int) -> str:
        """Take a place on the exploration ladder; says how it explores."""
        self._act.start(slot, incarnation)
        return "as the inference server decides"

    def begin(self, observations: Array) -> None:
        """Episodes begin everywhere."""
        self._act.begin(observations)

    def decide(self) -> Array:
        """The actions for what was observed last."""
        return self._act.take()

    def observe(self, result: StepResult) -> None:
        """Tell what a step gave."""
        self._act.observe(result)

    def cut(self) -> None:
        """The environments have failed; the server hears of it when episodes begin again."""

    @property
    def waiting(self) -> Phase | None:
        """What the next step waits for."""
        if self._act.answered:
            return None
        return "waiting_for_actions" if self._act.client.ready else "waiting_for_peer"

    def poll(self, publication: Publication | None) -> None:
        """Take what has arrived; never waits."""
        self._act.poll()

    def finish(self) -> None:
        """Say that this actor ends."""
        self._act.leave()

    @property
    def drained(self) -> bool:
        """Whether nothing is left that could still be handed over: nothing ever is."""
        return True

    def metrics(self) -> dict[str, Any]:
        """Figures of its own."""
        return {"asked": self._act.asked}

    def close(self) -> None:
        """Close the connection."""
        self._act.close()
