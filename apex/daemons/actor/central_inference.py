"""Central inference: the inference server chooses this actor's actions. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apex.daemons.inference.client import ActClient
from apex.daemons.learner.parameter_versions import Publication
from apex.daemons.service import Service
from apex.data.observations import Observations
from apex.data.schema import Array
from apex.envs.spec import StepResult
from apex.wire.client import Client
from apex.wire.messages import Phase


class CentralInference:
    """Requests actions from the inference server, which also inserts the resulting items.

    Args:
        service: the actor's.
    """

    learner_step = 0

    def __init__(self, service: Service) -> None:
        self._act = ActClient(
            service.endpoints.of("inference.act"), service.hello(), service.facts.env
        )

    @property
    def client(self) -> Client:
        """The connection that `poll` reads."""
        return self._act.client

    @property
    def ready(self) -> bool:
        """Whether the server is connected."""
        return self._act.client.ready

    def start(self, slot: int, incarnation: int) -> str:
        """Set slot and incarnation; returns a description of the exploration."""
        self._act.start(slot, incarnation)
        return "exploration by the inference server"

    def begin(self, observations: Observations) -> None:
        """Begin episodes in all environments."""
        self._act.begin(observations)

    def decide(self) -> Array:
        """Return the actions for the latest observations."""
        return self._act.take()

    def observe(self, result: StepResult) -> None:
        """Send the result of a step."""
        self._act.observe(result)

    def cut(self) -> None:
        """Do nothing: after a failure the next `begin` tells the server to truncate."""

    @property
    def waiting(self) -> Phase | None:
        """What the next step waits for, or None."""
        if self._act.answered:
            return None
        return "waiting_for_actions" if self._act.client.ready else "waiting_for_peer"

    def poll(self, publication: Publication | None) -> None:
        """Process received messages; never blocks."""
        self._act.poll()

    def finish(self, turn: Callable[[], object]) -> None:
        """Tell the server, which delivers the items, that this actor exits."""
        self._act.leave()

    def metrics(self) -> dict[str, Any]:
        """Metrics of inference, for the actor's metrics file."""
        return {"asked": self._act.asked}

    def close(self) -> None:
        """Close the connection."""
        self._act.close()
