"""How actors and evaluators talk to the learner: parameters, heartbeats, evaluations."""

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
        hello: of the member.
        clock: seconds, monotonic.
    """

    def __init__(
        self, endpoint: Endpoint, hello: Hello, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.client = Client(endpoint, hello)
        self.welcome: Welcome | None = None
        self.param_version = -1
        """Of the newest publication received."""
        self.learner_step = 0
        """Of the learner, as it last said."""
        self.last_contact = clock()
        """When the learner last said anything, on the given clock."""
        self._clock = clock
        self._asked = float("-inf")
        self._beaten = float("-inf")
        self._publication: Publication | None = None
        self._reports: list[EvaluationReport] = []

    def poll(self) -> Publication | None:
        """Take what has arrived; gives a publication that is newer than the last one."""
        for received in self.client.receive():
            message = received.message
            self.last_contact = self._clock()
            if isinstance(message, Welcome):
                self.welcome = message
                self._asked = float("-inf")
                self._send_reports()
            elif isinstance(message, HeartbeatAck):
                self.learner_step = message.learner_step
            elif isinstance(message, NotModified):
                self._asked = float("-inf")
            elif isinstance(message, Ack) and self._reports:
                self._reports.pop(0)
            elif isinstance(message, Params):
                self._asked = float("-inf")
                self._take(message, received.arrays["parameters"].data)
        publication, self._publication = self._publication, None
        return publication

    def _take(self, message: Params, data: memoryview) -> None:
        if zlib_ng.crc32(data) != message.crc32:
            log.warning("parameters %d: bad checksum, asking again", message.param_version)
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
        """Ask for newer parameters than the last ones, unless an answer is still awaited."""
        now = self._clock()
        if now - self._asked > ASK_AGAIN_S and self.client.send(
            GetParams(newer_than=self.param_version)
        ):
            self._asked = now

    def heartbeat(self, make: Callable[[], Heartbeat]) -> None:
        """Send a heartbeat when one is due."""
        now = self._clock()
        if now - self._beaten >= HEARTBEAT_PERIOD_S and self.client.send(make()):
            self._beaten = now

    def leave(self, heartbeat: Heartbeat) -> None:
        """Send the last heartbeat."""
        self.client.send(heartbeat)

    def report(self, report: EvaluationReport) -> None:
        """Send an evaluation; it is sent again until the learner has taken it."""
        self._reports.append(report)
        self.client.send(report)

    def _send_reports(self) -> None:
        for report in self._reports:
            self.client.send(report)

    def close(self) -> None:
        """Close the connection."""
        self.client.close()
