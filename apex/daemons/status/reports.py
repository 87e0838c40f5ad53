"""What each daemon answers to STATUS; PROTOCOL.md, section 9, lists the fields.

Of a daemon that does not answer a status shows the fields of its `…Summary` alone.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from apex.errors import DecodeError


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Base of all of them; a field that is not known is ignored, one that is missing is refused."""


Answer = TypeVar("Answer", bound=Report)


class LearnerSummary(Report, frozen=True, kw_only=True):
    """The learner, whether or not it answers."""

    state: str
    """`waiting`, `training` or `draining`; `down`, `starting` or `silent` where it does not answer.
    """
    pid: int | None
    learner_step: int = 0
    updates_per_s: float = 0.0
    samples_per_s: float = 0.0
    """Items."""
    data_wait_fraction: float | None = None
    """Share of its time in which it waits for a batch."""
    param_version: int = -1
    learning_rate: float | None = None
    """Of the last update."""
    rollbacks: int = 0
    """Times that it diverged and went back to a checkpoint."""
    alarm: str | None = None
    """Why the newest checkpoint was not written."""


class LearnerReport(LearnerSummary, frozen=True, kw_only=True):
    """The learner, by its own word."""

    device: str
    train_s: float
    ready_batches: int
    skipped_updates: int
    corrupt_items: int
    outcome: str | None
    """Why the run is at its end, if it is."""
    refused: int = 0
    open_files: int = 0
    max_open_files: int = 0
    strangers: int = 0


class ActorReport(Report, frozen=True, kw_only=True):
    """One actor, by its heartbeats."""

    actor_id: str
    slot: int | None = None
    """Its place on the exploration ladder."""
    pid: int | None
    state: str
    """Its phase; `suspect` or `gone` when it is silent, `down` without a process."""
    env_steps: int = 0
    env_steps_per_s: float = 0.0
    param_version: int = -1
    heartbeat_age_s: float | None = None
    episodes: int = 0
    mean_return: float | None = None
    env_faults: int = 0


class EvaluationsReport(Report, frozen=True, kw_only=True):
    """The evaluations, by what the learner was told of them."""

    phase: str | None = None
    """Of the evaluator's last heartbeat."""
    env_faults: int = 0
    episodes: int = 0
    mean_return: float | None = None
    """Of the last evaluation."""
    best_mean_return: float | None = None


class LearnerAnswer(Report, frozen=True, kw_only=True):
    """All that the learner answers: itself, its members, and what they have made."""

    learner: LearnerReport
    env_steps: int
    """Of all actors, since the run's first start."""
    actors: tuple[ActorReport, ...]
    evaluator: EvaluationsReport


class ReplaySummary(Report, frozen=True, kw_only=True):
    """The replay server, whether or not it answers."""

    state: str
    """`running` or `recovering`."""
    pid: int | None
    capacity: int
    items: int = 0
    bytes: int = 0
    inserts_per_s: float = 0.0
    """Items."""
    samples_per_s: float = 0.0
    """Items."""
    stale_priorities: int = 0
    refused: int = 0
    durable: bool = False
    """Whether inserts outlive the server now."""
    alarm: str | None = None
    """Why they do not."""


class ReplayReport(ReplaySummary, frozen=True, kw_only=True):
    """The replay server, by its own word."""

    min_size: int
    waiting_inserts: int
    waiting_samples: int
    """Requests that the rate limiter does not allow yet."""
    producers: int
    duplicate_inserts: int
    refused_by: dict[str, int]
    """Refusals by error code."""
    inserted: int
    sampled: int
    evicted: int
    exhausted: int
    updated_priorities: int
    refused_priorities: int
    durability: str
    volatile: bool
    """Whether the table has items that the log may lack."""
    log_bytes: int
    damaged: int
    """Places at which the log was damaged when it was read."""
    open_files: int
    max_open_files: int
    strangers: int


class InferenceSummary(Report, frozen=True, kw_only=True):
    """The inference server, whether or not it answers."""

    state: str
    """`waiting` for parameters, or `running`."""
    pid: int | None
    actors: int = 0
    decisions_per_s: float = 0.0
    """Environments."""
    batch_mean: float = 0.0
    """Environments."""
    busy_fraction: float | None = None
    param_version: int = -1
    refused: int = 0


class InferenceReport(InferenceSummary, frozen=True, kw_only=True):
    """The inference server, by its own word."""

    device: str
    batches_per_s: float
    learner_step: int
    inserted_items: int
    backlog_chunks: int
    open_files: int
    max_open_files: int
    strangers: int


def from_wire(answer: dict[str, object], report: type[Answer]) -> Answer:
    """Check an answer to STATUS.

    Raises:
        DecodeError: a field is missing or has another type.
    """
    try:
        return msgspec.convert(answer, report)
    except msgspec.ValidationError as error:
        raise DecodeError(
            f"its answer to STATUS is not a {report.__name__}: {error}; "
            "run the same apex on both sides"
        ) from None


def to_wire(report: Report) -> dict[str, object]:
    """The map of plain values that carries a report."""
    answer: dict[str, object] = msgspec.to_builtins(report)
    return answer
