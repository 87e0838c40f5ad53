"""Send the moments of what environments returned to the learner, each report until acknowledged."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from apex.acting.normalization import MomentCollector
from apex.daemons.learner.client import LearnerClient
from apex.data.schema import Array, Arrays
from apex.ops.moments import Moments
from apex.wire.messages import ReportMoments

PERIOD_S = 1.0
"""Seconds between two reports."""
RESEND_S = 3.0
"""Seconds without an acknowledgement after which a report is sent again."""


class _Report(NamedTuple):
    """A report that the learner has not acknowledged."""

    message: ReportMoments
    arrays: Arrays


class MomentSender:
    """Takes moments from a collector and sends them; one report at a time is unacknowledged.

    What is collected meanwhile waits as one set of moments, however long the learner is away.

    Args:
        learner: the connection to the learner.
        collector: collects the moments.
        clock: monotonic time in seconds.
    """

    def __init__(
        self,
        learner: LearnerClient,
        collector: MomentCollector,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._learner, self._collector, self._clock = learner, collector, clock
        self._report: _Report | None = None
        self._seq = 0
        self._taken_at = self._sent_at = float("-inf")

    def send(self) -> None:
        """Send a report when one is due, or the last one again; never blocks."""
        now, report = self._clock(), self._report
        if report is not None and self._learner.acknowledged_moments >= report.message.seq:
            self._report = report = None
        if report is not None:
            if now - self._sent_at >= RESEND_S:
                self._transmit(report, now)
        elif now - self._taken_at >= PERIOD_S:
            self._taken_at = now
            self._take(now)

    def finish(self) -> None:
        """Send what has been collected, before an exit; nothing waits for the acknowledgement."""
        self._take(self._clock())

    def _take(self, now: float) -> None:
        moments = self._collector.take()
        if moments:
            counts = {key: each.count for key, each in moments.items()}
            message = ReportMoments(seq=self._seq, counts=counts)
            self._seq += 1
            self._report = _Report(message, moment_arrays(moments))
            self._transmit(self._report, now)

    def _transmit(self, report: _Report, now: float) -> None:
        if self._learner.client.send(*report):
            self._sent_at = now


def moment_arrays(moments: Mapping[str, Moments]) -> dict[str, Array]:
    """The buffers of a `ReportMoments`: `mean.KEY` and `m2.KEY`, `[N] float64` each."""
    arrays: dict[str, Array] = {}
    for key, each in moments.items():
        arrays[f"mean.{key}"] = np.ascontiguousarray(each.mean)
        arrays[f"m2.{key}"] = np.ascontiguousarray(each.m2)
    return arrays


def read_moments(
    message: ReportMoments, arrays: Mapping[str, Array], sizes: Mapping[str, int]
) -> dict[str, Moments] | str:
    """The moments of a report, or what is wrong with it.

    Args:
        message, arrays: the report as it was received.
        sizes: numbers of each statistic that the run keeps, by its key.
    """
    unknown = message.counts.keys() - sizes.keys()
    if unknown or not message.counts:
        return f"expected counts of {', '.join(sizes)}, got {', '.join(message.counts) or 'none'}"
    expected = {f"{kind}.{key}" for kind in ("mean", "m2") for key in message.counts}
    if arrays.keys() != expected:
        return f"expected the buffers {sorted(expected)}, got {sorted(arrays)}"
    for name, array in arrays.items():
        size = sizes[name.partition(".")[2]]
        if array.dtype != np.float64 or array.shape != (size,):
            return f"{name}: expected float64 ({size},), got {array.dtype} {array.shape}"
    moments = {
        key: Moments(count, arrays[f"mean.{key}"].copy(), arrays[f"m2.{key}"].copy())
        for key, count in message.counts.items()
    }
    for key, each in moments.items():
        if not (each.count and each.valid):
            return (
                f"{key}: expected a count of at least 1, means within ±1e100 and sums of squares "
                "from 0 to 1e150"
            )
    return moments
