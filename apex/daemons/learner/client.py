"""Client of the learner: requests parameters, sends heartbeats and evaluations."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from zlib_ng import zlib_ng

from apex.daemons.learner.parameter_versions import Publication
from apex.wire.client import Client
from apex.wire.endpoints import Endpoint
from apex.wire.messages import (
    Ack,
    EvaluationReport,
    GetParams,
    Heartbeat,
    HeartbeatAck,
    Hello,
    MomentsAck,
    NotModified,
    Params,
    Welcome,
)

log = logging.getLogger("apex.learner")

HEARTBEAT_PERIOD_S = 1.0
ASK_AGAIN_S = 5.0


class LearnerClient:
    """One member's connection to `learner.params`.

    Args:
        endpoint: `learner.params`.
        hello: the member's.
        clock: monotonic time in seconds.
    """

    def __init__(
        self, endpoint: Endpoint, hello: Hello, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.client = Client(endpoint, hello)
        self.welcome: Welcome | None = None
        self.param_version = -1
        """Version of the newest publication received; -1: none."""
        self.learner_step = 0
        """Learner step in the last heartbeat's acknowledgement."""
        self.acknowledged_moments = -1
        """Largest number of a report of moments that the learner has counted or refused; -1: none."""
        self.last_contact = clock()
        """Time of the last message from the learner, on `clock`."""
        self._clock = clock
        self._params_asked_at = float("-inf")
        """Time of the open request for parameters; -inf: none is open."""
        self._heartbeat_at = float("-inf")
        self._publication: Publication | None = None
        self._reports: list[EvaluationReport] = []

    def poll(self) -> Publication | None:
        """Process received messages; returns a newer publication if one has arrived."""
        for received in self.client.receive():
            message = received.message
            self.last_contact = self._clock()
            if isinstance(message, Welcome):
                self.welcome = message
                self._params_asked_at = float("-inf")
                self._send_reports()
            elif isinstance(message, HeartbeatAck):
                self.learner_step = message.learner_step
            elif isinstance(message, MomentsAck):
                self.acknowledged_moments = max(self.acknowledged_moments, message.seq)
            elif isinstance(message, NotModified):
                self._params_asked_at = float("-inf")
            elif isinstance(message, Ack) and self._reports:
                self._reports.pop(0)
            elif isinstance(message, Params):
                self._params_asked_at = float("-inf")
                self._on_params(message, received.arrays["parameters"].data)
        publication, self._publication = self._publication, None
        return publication

    def _on_params(self, message: Params, data: memoryview) -> None:
        if zlib_ng.crc32(data) != message.crc32:
            log.warning(
                "parameters %d: wrong checksum, requesting them again", message.param_version
            )
            return
        if message.param_version <= self.param_version:
            return
        self.param_version = message.param_version
        self._publication = Publication(
            message.param_version,
            message.learner_step,
            message.env_steps,
            message.train_s,
            data,
            message.crc32,
        )

    def ask_for_params(self) -> None:
        """Request newer parameters, unless a request is open."""
        now = self._clock()
        if now - self._params_asked_at > ASK_AGAIN_S and self.client.send(
            GetParams(newer_than=self.param_version)
        ):
            self._params_asked_at = now

    def heartbeat(self, make: Callable[[], Heartbeat]) -> None:
        """Send a heartbeat when one is due."""
        now = self._clock()
        if now - self._heartbeat_at >= HEARTBEAT_PERIOD_S and self.client.send(make()):
            self._heartbeat_at = now

    def leave(self, heartbeat: Heartbeat) -> None:
        """Send the last heartbeat."""
        self.client.send(heartbeat)

    def report(self, report: EvaluationReport) -> None:
        """Send an evaluation, and again after each reconnect until it is acknowledged."""
        self._reports.append(report)
        self.client.send(report)

    def _send_reports(self) -> None:
        for report in self._reports:
            self.client.send(report)

    def close(self) -> None:
        """Close the connection."""
        self.client.close()
