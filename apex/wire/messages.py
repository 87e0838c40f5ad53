"""Every message of the protocol as a typed struct; PROTOCOL.md describes each of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from apex.data.array_bytes import Buffer

PROTOCOL_VERSION = 5

MAX_COUNT = 2**53
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=MAX_COUNT)]

NAME_PATTERN = r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,63}\Z"
"""Names stand in logs and file names."""

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
    """Base of all headers. `buffers` is filled in by the codec."""

    protocol: int = PROTOCOL_VERSION
    buffers: tuple[Buffer, ...] = ()


class Hello(Message, frozen=True, tag="hello"):
    """The first message on a connection: who speaks, for which run, with which data."""

    role: Role
    name: Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
    epoch: int
    run_id: str
    schema_hash: str
    pid: int

    @property
    def member(self) -> str:
        """In a server's books; an evaluator that calls itself `actor_000` is not that actor."""
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
    """The answer to a message that was refused."""

    code: str
    detail: str


class Insert(Message, frozen=True, tag="insert"):
    """One chunk of items; sequence numbers rise by one within a producer's epoch."""

    seq: int


class InsertAck(Message, frozen=True, tag="insert_ack"):
    """The chunk `seq` is in the table, and so is every earlier one."""

    seq: int
    credits: int
    volatile_seq: int = -1
    """Those above it outlive the server; of the others some do not."""


class Sample(Message, frozen=True, tag="sample"):
    """Asks for one batch; answered when the rate limiter allows it."""

    request_id: int
    batch_size: int


class SampleReply(Message, frozen=True, tag="samples"):
    """One batch, as declared by the schema."""

    request_id: int
    table_items: int


class UpdatePriorities(Message, frozen=True, tag="update_priorities"):
    """New priorities by item id; not answered, stale ones are counted."""


class Act(Message, frozen=True, tag="act"):
    """What an actor's environments gave; asks what they shall do."""

    seq: Count
    """Rises by one; the same again asks for the same answer again."""
    begins: bool
    """Episodes begin everywhere; what went before is cut."""
    slot: Count
    incarnation: Count


class Actions(Message, frozen=True, tag="actions"):
    """The answer to `Act`: the buffer `actions`."""

    seq: int


class Leave(Message, frozen=True, tag="leave"):
    """The actor ends: what it has made is complete. Not answered."""


class GetParams(Message, frozen=True, tag="get_params"):
    """Asks for parameters newer than a version (-1: any)."""

    newer_than: int


class Params(Message, frozen=True, tag="params"):
    """A publication: safetensors bytes in the buffer `parameters`, with where they stand."""

    param_version: int
    learner_step: int
    env_steps: int
    train_s: float
    crc32: int


class NotModified(Message, frozen=True, tag="not_modified"):
    """There are no newer parameters."""


class Heartbeat(Message, frozen=True, tag="heartbeat"):
    """A sign of life from a work loop, every second, with its counters since its epoch."""

    phase: Phase
    param_version: int = -1
    env_steps: Count = 0
    env_steps_per_s: float = 0.0
    episodes: Count = 0
    mean_return: float | None = None
    env_faults: Count = 0


class HeartbeatAck(Message, frozen=True, tag="heartbeat_ack"):
    """The answer to a heartbeat, with the learner step of the newest publication."""

    learner_step: int


class EvaluationReport(Message, frozen=True, tag="evaluation"):
    """Returns of one evaluation, one for each whole episode."""

    returns: tuple[float, ...]


class Ack(Message, frozen=True, tag="ack"):
    """The message was taken."""


class Status(Message, frozen=True, tag="status"):
    """Asks a daemon how it is."""


class StatusReply(Message, frozen=True, tag="status_reply"):
    """How a daemon is: a map of plain values."""

    status: dict[str, Any]


class Snapshot(Message, frozen=True, tag="snapshot"):
    """Asks a daemon to bring all that it knows to the disk now."""

    snapshot_id: int = 0


class SnapshotReply(Message, frozen=True, tag="snapshot_reply"):
    """What is on the disk now: a map of plain values."""

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
    | Ack
    | Status
    | StatusReply
    | Snapshot
    | SnapshotReply
)
