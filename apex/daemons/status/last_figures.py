"""Last figures of a run that has ended, read from its metrics files."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from apex.acting.episodes import metrics_of
from apex.daemons.catalog import ACTOR, INFERENCE, LEARNER, REPLAY
from apex.daemons.status.bottleneck import limiting_part, warm_up
from apex.daemons.status.reports import (
    ActorReport,
    Answer,
    InferenceSummary,
    LearnerSummary,
    ReplaySummary,
)
from apex.runs.directory import RunDirectory

TAIL_BYTES = 64 * 1024
"""Bytes that are read at the end of a metrics file: some dozens of records."""
Record = Mapping[str, Any]


class LastFigures:
    """The last metrics that the daemons of a run have written.

    Args:
        run: a run without a running daemon.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run

    def learner(self, down: LearnerSummary) -> LearnerSummary:
        """Add the last figures to the row of a learner that is down."""
        names = ("updates_per_s", "samples_per_s", "data_wait_fraction", "rollbacks")
        return _with(down, self._newest(LEARNER.kind), names)

    def replay(self, down: ReplaySummary) -> ReplaySummary:
        """Add the last figures to the row of a replay server that is down."""
        names = ("items", "bytes", "inserts_per_s", "samples_per_s", "stale_priorities", "refused")
        return _with(down, self._newest(REPLAY.kind), names)

    def inference(self, down: InferenceSummary) -> InferenceSummary:
        """Add the last figures to the row of an inference server that is down."""
        names = ("decisions_per_s", "batch_mean", "busy_fraction", "param_version", "refused")
        return _with(down, self._newest(INFERENCE.kind), names)

    def actor(self, down: ActorReport) -> ActorReport:
        """Add the last figures to the row of an actor that is down."""
        record = self._newest(down.actor_id)
        names = ("env_steps", "env_steps_per_s", "param_version", "episodes", "mean_return",
                 "env_faults", "metrics")  # fmt: skip
        known = {**record, "env_steps": record.get("step"), "metrics": metrics_of(record)}
        return _with(down, known, names)

    def bottleneck(self, min_size: int) -> str | None:
        """Return which part limited the run's speed, or None without metrics.

        The second-to-last records are used where they exist, since daemons wait for each other
        while a run ends.

        Args:
            min_size: items from which the learner starts.
        """
        learner, replay = self._before_the_end(LEARNER.kind), self._before_the_end(REPLAY.kind)
        if not learner:
            return None
        items = replay.get("items", 0)
        if not learner["step"] and items < min_size:
            return warm_up(items, min_size)
        actors = [path.stem for path in self._run.metrics.glob(f"{ACTOR.kind}_*.jsonl")]
        phases = [self._before_the_end(actor).get("phase") for actor in actors]
        return limiting_part(
            data_wait_fraction=learner.get("data_wait_fraction"),
            waiting_samples=replay.get("waiting_samples", 0),
            blocked_actors=phases.count("waiting_for_credit"),
        )

    def _newest(self, daemon: str) -> Record:
        return (last_records(self._run.metrics / f"{daemon}.jsonl", 1) or [{}])[-1]

    def _before_the_end(self, daemon: str) -> Record:
        return (last_records(self._run.metrics / f"{daemon}.jsonl", 2) or [{}])[0]


def last_records(path: Path, count: int) -> list[Record]:
    """Return the last `count` valid records of a file of JSON lines, in order.

    The rotated file is read too if the file has fewer.
    """
    records = _valid_records(_tail(path))
    if len(records) < count:
        records = _valid_records(_tail(path.with_name(path.name + ".1"))) + records
    return records[-count:]


def _valid_records(lines: list[bytes]) -> list[Record]:
    """Parse lines; an invalid one, such as a line cut off by a crash, is skipped."""
    records: list[Record] = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _tail(path: Path) -> list[bytes]:
    """Return the last lines of a file, or no lines when it cannot be read."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return []
    return lines[1:] if size > TAIL_BYTES else lines


def _with(row: Answer, record: Record, names: tuple[str, ...]) -> Answer:
    """Return a row with a record's fields, or unchanged when one of them has a wrong type."""
    values = {name: record[name] for name in names if record.get(name) is not None}
    try:
        return msgspec.convert({**msgspec.to_builtins(row), **values}, type(row))
    except msgspec.ValidationError:
        return row
