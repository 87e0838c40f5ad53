"""Replies of the daemons to STATUS; PROTOCOL.md, section 9, lists the fields.

For a daemon that does not answer, a status shows only the fields of its `…Summary`.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from apex.errors import DecodeError


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Base class of all reports. Unknown fields are ignored, missing ones are refused."""


Answer = TypeVar("Answer", bound=Report)


class LearnerSummary(Report, frozen=True, kw_only=True):
    """The learner, whether or not it answers."""

    state: str
    """`waiting`, `training` or `draining`; without an answer `down`, `starting` or `silent`."""
    pid: int | None
    learner_step: int = 0
    updates_per_s: float = 0.0
    samples_per_s: float = 0.0
    """Sampled items per second."""
    data_wait_fraction: float | None = None
    """Fraction of its time in which it waits for a batch."""
    param_version: int = -1
    learning_rate: float | None = None
    """Learning rate of the last update."""
    rollbacks: int = 0
    """How often it diverged and was rolled back to a checkpoint."""
    alarm: str | None = None
    """Why the newest checkpoint could not be written; None if it was."""


class LearnerReport(LearnerSummary, frozen=True, kw_only=True):
    """The learner's own report."""

    device: str
    train_s: float
    ready_batches: int
    skipped_updates: int
    corrupt_items: int
    outcome: str | None
    """Why the run has ended; None while it has not."""
    refused: int = 0
    """Refused messages and dropped replies."""
    open_files: int = 0
    max_open_files: int = 0
    strangers: int = 0
    """Refused handshakes."""


class ActorReport(Report, frozen=True, kw_only=True):
    """One actor, from its heartbeats."""

    actor_id: str
    slot: int | None = None
    """Its position on the exploration ladder."""
    pid: int | None
    state: str
    """Its phase; `suspect` or `gone` when it is silent, `down` when it is not running."""
    env_steps: int = 0
    env_steps_per_s: float = 0.0
    param_version: int = -1
    heartbeat_age_s: float | None = None
    episodes: int = 0
    mean_return: float | None = None
    env_faults: int = 0
    metrics: dict[str, float] = {}
    """Mean of each measured scalar of `info` over the last episodes."""


class EvaluationsReport(Report, frozen=True, kw_only=True):
    """The evaluations that the learner has received."""

    phase: str | None = None
    """Phase in the evaluator's last heartbeat."""
    env_faults: int = 0
    episodes: int = 0
    mean_return: float | None = None
    """Mean return of the last evaluation."""
    best_mean_return: float | None = None
    metrics: dict[str, float] = {}
    """Mean of each measured scalar of `info` in the last evaluation."""
    episode_steps: int = 0
    """Steps of the longest unfinished episode of the evaluation that is running."""


class LearnerAnswer(Report, frozen=True, kw_only=True):
    """The learner's complete reply: its own report and those of its members."""

    learner: LearnerReport
    env_steps: int
    """Environment steps of all actors, since the run's first start."""
    actors: tuple[ActorReport, ...]
    evaluator: EvaluationsReport


class ReplaySummary(Report, frozen=True, kw_only=True):
    """The replay server, whether or not it answers."""

    state: str
    """`running` or `recovering`; without an answer `down`, `starting` or `silent`."""
    pid: int | None
    capacity: int
    items: int = 0
    bytes: int = 0
    inserts_per_s: float = 0.0
    """Inserted items per second."""
    samples_per_s: float = 0.0
    """Sampled items per second."""
    stale_priorities: int = 0
    refused: int = 0
    durable: bool = False
    """Whether inserts are durable now."""
    alarm: str | None = None
    """Why inserts are not durable; None if they are."""


class ReplayReport(ReplaySummary, frozen=True, kw_only=True):
    """The replay server's own report."""

    min_size: int
    waiting_inserts: int
    """Inserts that wait for the rate limiter."""
    waiting_samples: int
    """Requests for batches that wait for the rate limiter."""
    producers: int
    duplicate_inserts: int
    refused_by: dict[str, int]
    """Refused messages by error code, and dropped replies."""
    refused_chunk: str | None = None
    """Whose chunk was refused in the last minute, and why; its items are lost."""
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
    """Number of damaged places that were found when the log was read."""
    open_files: int
    max_open_files: int
    strangers: int


class InferenceSummary(Report, frozen=True, kw_only=True):
    """The inference server, whether or not it answers."""

    state: str
    """`waiting` for parameters, or `running`; without an answer `down`, `starting` or `silent`."""
    pid: int | None
    actors: int = 0
    decisions_per_s: float = 0.0
    """Actions per second, one per environment and step."""
    batch_mean: float = 0.0
    """Mean number of environments in a batch."""
    busy_fraction: float | None = None
    param_version: int = -1
    refused: int = 0


class InferenceReport(InferenceSummary, frozen=True, kw_only=True):
    """The inference server's own report."""

    device: str
    batches_per_s: float
    learner_step: int
    inserted_items: int
    backlog_chunks: int
    open_files: int
    max_open_files: int
    strangers: int


def from_wire(answer: dict[str, object], report: type[Answer]) -> Answer:
    """Check and convert a reply to STATUS.

    Raises:
        DecodeError: a field is missing or has another type.
    """
    try:
        return msgspec.convert(answer, report)
    except msgspec.ValidationError as error:
        raise DecodeError(
            f"the reply to STATUS is not a valid {report.__name__}: {error}; "
            "install the same version of apex on both sides"
        ) from None


def to_wire(report: Report) -> dict[str, object]:
    """Convert a report to plain values."""
    answer: dict[str, object] = msgspec.to_builtins(report)
    return answer
