"""Stand-ins, without sockets, for what a daemon connects to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace

from apex.daemons.learner.parameter_versions import Publication
from apex.daemons.learner.prefetcher import Batch
from apex.data.chunks import Chunk
from apex.wire.messages import EvaluationReport, Heartbeat, Welcome


class LearnerStandIn:
    """The learner as its clients see it; a test decides what each poll returns.

    Args:
        welcome: what the client was greeted with.
        publish: returns the newer parameters of a poll, if any; it may read `beats`.
    """

    client = SimpleNamespace(ready=True)
    last_contact = float("inf")

    def __init__(
        self,
        publish: Callable[[LearnerStandIn], Publication | None] = lambda learner: None,
        welcome: Welcome | None = None,
    ) -> None:
        self.welcome = welcome
        self.beats: list[Heartbeat] = []
        self.reports: list[EvaluationReport] = []
        self.asked = 0
        self.param_version = -1
        self.learner_step = 0
        self._publish = publish

    def poll(self) -> Publication | None:
        """Newer parameters, if the test has some."""
        newer = self._publish(self)
        if newer is not None:
            self.param_version, self.learner_step = newer.param_version, newer.learner_step
        return newer

    def ask_for_params(self) -> None:
        """Count the requests."""
        self.asked += 1

    def heartbeat(self, make: Callable[[], Heartbeat]) -> None:
        """Record a heartbeat at each turn, not only once a second."""
        self.beats.append(make())

    def leave(self, heartbeat: Heartbeat) -> None:
        """Record the last heartbeat."""
        self.beats.append(heartbeat)

    def report(self, report: EvaluationReport) -> None:
        """Record a report."""
        self.reports.append(report)

    def close(self) -> None:
        """Nothing is open."""


class ReplayStandIn:
    """Replay as its clients see it; accepts every chunk at once."""

    client = SimpleNamespace(ready=True)
    has_credit = True
    unacknowledged = 0

    def __init__(self) -> None:
        self.chunks: list[Chunk] = []

    @property
    def inserted_items(self) -> int:
        """Items of all chunks."""
        return sum(len(chunk) for chunk in self.chunks)

    def insert(self, chunk: Chunk) -> None:
        """Record a chunk."""
        self.chunks.append(chunk)

    def poll(self) -> None:
        """Nothing arrives."""

    def close(self) -> None:
        """Nothing is open."""


class PrefetcherStandIn:
    """Brings batches that a test makes; drops what is sent back to replay."""

    ready = corrupt_items = dropped_batches = table_items = 0
    saved = None

    def __init__(self, make: Callable[[], Batch | None]) -> None:
        self._make = make

    def get(self, timeout_s: float) -> Batch | None:
        """The next batch, without waiting."""
        return self._make()

    def put_priorities(self, item_ids: object, priorities: object) -> None:
        """Drop new priorities."""

    def reject(self, item_ids: Sequence[int]) -> None:
        """Drop the numbers of bad items."""

    def close(self) -> None:
        """Nothing is open."""


class PollerStandIn:
    """Never waits; calls `passed` with the seconds of each wait instead."""

    def __init__(self, passed: Callable[[float], object] = lambda seconds: None) -> None:
        self._passed = passed

    def wait(self, timeout_s: float) -> bool:
        """Call `passed`; nothing is ever readable."""
        self._passed(timeout_s)
        return False


def in_turn(publications: Sequence[Publication]) -> Callable[[object], Publication | None]:
    """Publish the given publications, one at each poll."""
    left = list(publications)
    return lambda learner: left.pop(0) if left else None
