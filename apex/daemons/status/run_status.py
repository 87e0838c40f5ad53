"""The status of a whole run, as `apex status --json` prints it."""

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
    """What holds of the whole run."""

    path: str
    env_id: str
    algorithm: str
    engine: str | None
    """`supervisor` or `local`; None when the run has no living engine."""
    env_steps: int
    frames: int
    """Emulator frames: `env_steps` times the frame skip."""
    uptime_s: float
    """Of the engine."""
    outcome: str | None
    """Why the run ended, when it ended by itself."""
    bottleneck: str = ""
    """Which part holds the others back."""
    alarms: tuple[str, ...] = ()
    """What a person should see to."""
    health: str = "down"
    """`healthy`, `degraded` or `down`."""


class EvaluatorSummary(EvaluationsReport, frozen=True, kw_only=True):
    """The evaluator's process, and the evaluations."""

    state: str
    """`running` or `down`."""
    pid: int | None


Row: TypeAlias = LearnerSummary | ReplaySummary | InferenceSummary | EvaluatorSummary | ActorReport


class RunStatus(Report, frozen=True, kw_only=True):
    """A run and each of its daemons."""

    run: RunSummary
    learner: LearnerSummary
    """A `LearnerReport` when it answers; likewise the two below."""
    replay: ReplaySummary
    inference: InferenceSummary | None
    """None in a run whose actors decide themselves."""
    actors: tuple[ActorReport, ...]
    evaluator: EvaluatorSummary

    def rows(self) -> list[tuple[DaemonSpec, str, Row]]:
        """Each daemon with its kind and its name."""
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
        """Whether nothing of the run lives."""
        return self.run.engine is None and all(row.pid is None for _, _, row in self.rows())

    def as_map(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values
