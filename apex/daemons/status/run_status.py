"""Status of a whole run, in the structure that `apex status --json` prints."""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec

from apex.daemons.catalog import ACTOR, EVALUATOR, INFERENCE, LEARNER, REPLAY, DaemonSpec
from apex.daemons.status.reports import (
    ActorReport,
    EvaluationsReport,
    InferenceSummary,
    LearnerSummary,
    ReplaySummary,
    Report,
)


class RunSummary(Report, frozen=True, kw_only=True):
    """The fields that concern the run as a whole."""

    path: str
    env_id: str
    algorithm: str
    engine: str | None
    """`supervisor` or `local`; None when no engine is running."""
    env_steps: int
    frames: int
    """Emulator frames: `env_steps` times the frame skip."""
    uptime_s: float
    """Seconds since the start of the engine."""
    outcome: str | None
    """Why the run ended, if it has reached its end."""
    bottleneck: str = ""
    """Which part limits the run's speed."""
    alarms: tuple[str, ...] = ()
    """Problems that need a person's attention."""
    health: str = "down"
    """`healthy`, `degraded` or `down`."""


class EvaluatorSummary(EvaluationsReport, frozen=True, kw_only=True):
    """The evaluator's process and its evaluations."""

    state: str
    """`running` or `down`."""
    pid: int | None


Row: TypeAlias = LearnerSummary | ReplaySummary | InferenceSummary | EvaluatorSummary | ActorReport


class RunStatus(Report, frozen=True, kw_only=True):
    """A run and each of its daemons."""

    run: RunSummary
    learner: LearnerSummary
    """A `LearnerReport` when the learner answers; replay and inference likewise."""
    replay: ReplaySummary
    inference: InferenceSummary | None
    """None with local inference."""
    actors: tuple[ActorReport, ...]
    evaluator: EvaluatorSummary

    def rows(self) -> list[tuple[DaemonSpec, str, Row]]:
        """Return kind, name and row of each daemon."""
        found: list[tuple[DaemonSpec, str, Row]] = [
            (LEARNER, LEARNER.kind, self.learner),
            (REPLAY, REPLAY.kind, self.replay),
            (EVALUATOR, EVALUATOR.kind, self.evaluator),
        ]
        if self.inference is not None:
            found.append((INFERENCE, INFERENCE.kind, self.inference))
        return found + [(ACTOR, row.actor_id, row) for row in self.actors]

    @property
    def over(self) -> bool:
        """Whether neither the engine nor any daemon is running."""
        return self.run.engine is None and all(row.pid is None for _, _, row in self.rows())

    def as_map(self) -> dict[str, Any]:
        """Convert to plain values, for JSON."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values
