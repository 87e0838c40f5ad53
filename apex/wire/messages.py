"""The messages of the protocol as typed structs; PROTOCOL.md describes each of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from apex.config.sections import MAX_METRICS, MetricName
from apex.data.array_bytes import Buffer

PROTOCOL_VERSION = 6

MAX_COUNT = 2**53
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]

Metrics: TypeAlias = Annotated[dict[MetricName, float], msgspec.Meta(max_length=MAX_METRICS + 1)]
"""Means of measured scalars by name: `success` and those in `env.metrics`."""

NAME_PATTERN = r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z"
"""Restrictive, because names appear in log lines and file names."""

Role: TypeAlias = Literal["actor", "inference", "learner", "evaluator", "operator"]

Phase: TypeAlias = Literal[
    "starting",
    "waiting_for_peer",
    "waiting_for_credit",
    "waiting_for_actions",
    "stepping",
    "recreating",
    "evaluating",
    "idle",
    "leaving",
]


class Message(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True
):
    """Base class of all headers. The codec fills in `buffers`."""

    protocol: int = PROTOCOL_VERSION
    buffers: tuple[Buffer, ...] = ()


class Hello(Message, frozen=True, tag="hello"):
    """The first message on a connection: the sender's role, name, run and data schema."""

    role: Role
    name: Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
    epoch: int
    run_id: str
    schema_hash: str
    pid: int

    @property
    def member(self) -> str:
        """Key of this member in a server: its name, with the role in front unless it is an actor.

        An evaluator that is named `actor_000` therefore differs from the actor of that name.
        """
        return self.name if self.role == "actor" else f"{self.role}:{self.name}"


class Welcome(Message, frozen=True, tag="welcome"):
    """The answer to HELLO. `instance` changes when the server restarts."""

    instance: int
    credits: int = 0
    last_seq: int = -1
    volatile_seq: int = -1
    slot: int = -1
    incarnation: int = 0


class Error(Message, frozen=True, tag="error"):
    """The reply to a refused message."""

    code: str
    detail: str


class Insert(Message, frozen=True, tag="insert"):
    """One chunk of items; `seq` increases by one with each insert of a producer's epoch."""

    seq: int


class InsertAck(Message, frozen=True, tag="insert_ack"):
    """Acknowledges the chunk `seq` and every earlier one: all of them are in the table."""

    seq: int
    credits: int
    volatile_seq: int = -1
    """Acknowledged inserts above this number are durable; some of the others may not be."""


class Sample(Message, frozen=True, tag="sample"):
    """Requests one batch; answered when the rate limiter allows it."""

    request_id: int
    batch_size: int


class SampleReply(Message, frozen=True, tag="samples"):
    """One batch of items; the schema declares its buffers."""

    request_id: int
    table_items: int


class UpdatePriorities(Message, frozen=True, tag="update_priorities"):
    """New priorities by item id. Has no reply; ids that left the table are counted."""


class Act(Message, frozen=True, tag="act"):
    """An actor's newest observations and rewards; requests the next actions."""

    seq: Count
    """Increases by one with each request; a repeated number requests the same answer again."""
    begins: bool
    """Whether episodes begin in all environments; unfinished episodes are truncated."""
    slot: Count
    incarnation: Count


class Actions(Message, frozen=True, tag="actions"):
    """The reply to `Act`, with the buffer `actions`."""

    seq: int


class Leave(Message, frozen=True, tag="leave"):
    """The actor exits; its unfinished episodes are truncated. Has no reply."""


class GetParams(Message, frozen=True, tag="get_params"):
    """Requests parameters newer than a version (-1: any)."""

    newer_than: int


class Params(Message, frozen=True, tag="params"):
    """A publication: safetensors bytes in the buffer `parameters`, and counters of that moment."""

    param_version: int
    learner_step: int
    env_steps: int
    train_s: float
    crc32: int


class NotModified(Message, frozen=True, tag="not_modified"):
    """There are no newer parameters."""


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    """Sent every second by a work loop, with its counters since the start of the process."""

    phase: Phase
    param_version: int = -1
    env_steps: Count = 0
    env_steps_per_s: float = 0.0
    episodes: Count = 0
    mean_return: float | None = None
    env_faults: Count = 0
    metrics: Metrics = {}


class HeartbeatAck(Message, frozen=True, tag="heartbeat_ack"):
    """The reply to a heartbeat, with the learner step of the newest publication."""

    learner_step: int


class EvaluationReport(Message, frozen=True, tag="evaluation"):
    """The returns of one evaluation, one per complete episode, and what else was measured."""

    returns: tuple[float, ...]
    metrics: Metrics = {}


class ReportMoments(Message, frozen=True, tag="moments"):
    """The moments of what environments returned since the last report, for normalisation.

    Its buffers are `mean.KEY` and `m2.KEY` of each key of `counts`.
    """

    seq: Count
    """Increases with each report of an epoch; a number that was counted is not counted again."""
    counts: dict[str, Count]
    """Rows of each statistic."""


class MomentsAck(Message, frozen=True, tag="moments_ack"):
    """The report `seq` is counted."""

    seq: Count


class Ack(Message, frozen=True, tag="ack"):
    """The message was accepted."""


class Status(Message, frozen=True, tag="status"):
    """Requests a daemon's status."""


class StatusReply(Message, frozen=True, tag="status_reply"):
    """A daemon's status: a map of plain values."""

    status: dict[str, Any]


class Snapshot(Message, frozen=True, tag="snapshot"):
    """Requests that a daemon write its whole state to disk now."""

    snapshot_id: int = 0


class SnapshotReply(Message, frozen=True, tag="snapshot_reply"):
    """What a snapshot has written to disk: a map of plain values."""

    snapshot_id: int
    saved: dict[str, Any]


AnyMessage: TypeAlias = (
    Hello
    | Welcome
    | Error
    | Insert
    | InsertAck
    | Sample
    | SampleReply
    | UpdatePriorities
    | Act
    | Actions
    | Leave
    | GetParams
    | Params
    | NotModified
    | Heartbeat
    | HeartbeatAck
    | EvaluationReport
    | ReportMoments
    | MomentsAck
    | Ack
    | Status
    | StatusReply
    | Snapshot
    | SnapshotReply
)
