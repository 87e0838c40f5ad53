"""Membership: actors and evaluators by heartbeat, their slots, and the total environment steps."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from apex.daemons.status.reports import ActorReport, EvaluationsReport
from apex.errors import RefusedError
from apex.runs.checkpoint import ActorRecord
from apex.wire.messages import MAX_COUNT, EvaluationReport, Heartbeat, Hello, Welcome

SUSPECT_S = 3.0
"""Seconds of silence after which a member is suspect."""
GONE_S = 30.0
"""Seconds of silence after which a member is gone and its slot is free."""
MAX_MEMBERS = 10_000
INCARNATIONS_PER_START = 2**20
"""More incarnations than a slot ever gets between two starts of the learner."""


@dataclass
class Member:
    """An actor or evaluator whose HELLO was accepted."""

    hello: Hello
    slot: int
    last_seen: float
    heartbeat: Heartbeat | None = None


Entry = TypeVar("Entry")


def _put_last(entries: dict[str, Entry], name: str, entry: Entry) -> None:
    entries.pop(name, None)
    entries[name] = entry


class Membership:
    """Registry of the members of a run.

    Args:
        num_actors: number of configured actors; `actor_NNN` below it has slot NNN of the epsilon
            ladder, any other actor the lowest free slot from that number on.
        instance: the server's, for its `Welcome`.
        env_steps: environment steps before this start of the learner.
        records: the actors' records at that time.
        clock: monotonic time in seconds.
        starts: starts of the learner in this run before this one; keeps incarnations unique,
            since `records` may lack those that were assigned after the last checkpoint.
        max_members: most names that are known at once; beyond it the oldest is forgotten.
    """

    def __init__(
        self,
        num_actors: int,
        instance: int,
        env_steps: int = 0,
        records: Mapping[str, ActorRecord] | None = None,
        clock: Callable[[], float] = time.monotonic,
        starts: int = 0,
        max_members: int = MAX_MEMBERS,
    ) -> None:
        self._num_actors = num_actors
        self._instance = instance
        self._clock = clock
        self._max_members = max_members
        self._members: dict[str, Member] = {}
        self._evaluations = 0
        self._last_evaluation: float | None = None
        self._last_metrics: dict[str, float] = {}
        self.env_steps = env_steps
        """Environment steps of all actors, since the run's first start."""
        self.records = dict(records or {})
        """Records by `Hello.member`, in the order of the members' last HELLO."""
        self.best_return: float | None = None
        self._first_incarnation = starts * INCARNATIONS_PER_START
        self._next_incarnation: dict[int, int] = {}
        """Next incarnation by slot."""
        for record in self.records.values():
            before = self._next_incarnation.get(record.slot, self._first_incarnation)
            self._next_incarnation[record.slot] = max(before, record.incarnation + 1)

    def greet(self, hello: Hello) -> Welcome:
        """Admit a member; one that reconnects keeps its slot if that is free.

        Raises:
            RefusedError: a later start of the same name is known.
        """
        key = hello.member
        known, record = self._members.get(key), self.records.get(key)
        if known is not None and known.hello.epoch > hello.epoch:
            raise RefusedError(
                f"a newer process of {hello.name} has connected; this older one must exit",
                "superseded",
            )
        slot = known.slot if known else self._assign_slot(hello, record.slot if record else -1)
        if record is None or record.epoch != hello.epoch:
            record = ActorRecord(hello.epoch, self._take_incarnation(slot), slot, 0)
        elif record.slot != slot:  # it was silent, and its slot was given to another
            incarnation = self._take_incarnation(slot)
            record = msgspec.structs.replace(record, slot=slot, incarnation=incarnation)
        heartbeat = known.heartbeat if known and known.hello.epoch == hello.epoch else None
        _put_last(self.records, key, record)
        _put_last(self._members, key, Member(hello, slot, self._clock(), heartbeat))
        self._forget_first()
        return Welcome(instance=self._instance, slot=slot, incarnation=record.incarnation)

    def _take_incarnation(self, slot: int) -> int:
        """Return an incarnation that is unique in its slot; seeds depend on both."""
        incarnation = self._next_incarnation.get(slot, self._first_incarnation)
        self._next_incarnation[slot] = incarnation + 1
        return incarnation

    def _forget_first(self) -> None:
        """Forget the members with the oldest HELLO beyond `max_members`, to bound memory."""
        while len(self.records) > self._max_members:
            first = next(iter(self.records))
            del self.records[first]
            self._members.pop(first, None)

    def _assign_slot(self, hello: Hello, previous: int) -> int:
        """Return the configured slot, else the previous one if free, else the lowest free one."""
        if hello.role != "actor":
            return -1
        configured = re.fullmatch(r"actor_(\d+)", hello.name)
        if configured and int(configured[1]) < self._num_actors:
            return int(configured[1])
        self._forget_gone()
        taken = {member.slot for member in self._members.values()}
        if previous >= self._num_actors and previous not in taken:
            return previous
        slot = self._num_actors
        while slot in taken:
            slot += 1
        return slot

    def _forget_gone(self) -> None:
        for name, member in list(self._members.items()):
            if self._clock() - member.last_seen > GONE_S and member.slot >= self._num_actors:
                del self._members[name]

    def heartbeat(self, hello: Hello, heartbeat: Heartbeat) -> None:
        """Record a heartbeat, and add an actor's new steps to the total."""
        key = hello.member
        member, record = self._members[key], self.records[key]
        if hello.role == "actor":
            new_steps = max(0, heartbeat.env_steps - record.env_steps)
            self.env_steps = min(self.env_steps + new_steps, MAX_COUNT)
        counted = max(heartbeat.env_steps, record.env_steps)
        self.records[key] = msgspec.structs.replace(record, env_steps=counted)
        member.heartbeat = heartbeat
        member.last_seen = self._clock()
        if heartbeat.phase == "leaving" and member.slot >= self._num_actors:
            del self._members[key]

    def knows(self, hello: Hello) -> bool:
        """Return whether this start of the member was admitted and is not forgotten."""
        member = self._members.get(hello.member)
        return member is not None and member.hello.epoch == hello.epoch

    def evaluation(self, report: EvaluationReport) -> float:
        """Record an evaluation; returns its mean return."""
        # Dividing first keeps the mean of finite returns finite.
        mean = math.fsum(r / len(report.returns) for r in report.returns)
        self._evaluations += len(report.returns)
        self._last_evaluation, self._last_metrics = mean, report.metrics
        self.best_return = mean if self.best_return is None else max(self.best_return, mean)
        return mean

    def actors(self) -> tuple[ActorReport, ...]:
        """Status rows of the actors, by slot; actors without a configured slot vanish when gone."""
        self._forget_gone()
        rows = [self._row(m) for m in self._members.values() if m.hello.role == "actor"]
        return tuple(sorted(rows, key=lambda row: row.slot or 0))

    def _row(self, member: Member) -> ActorReport:
        age = self._clock() - member.last_seen
        beat = member.heartbeat or Heartbeat(phase="starting")
        state: str = beat.phase
        if age > GONE_S:
            state = "gone"
        elif age > SUSPECT_S:
            state = "suspect"
        return ActorReport(
            actor_id=member.hello.name,
            slot=member.slot,
            pid=member.hello.pid,
            state=state,
            env_steps=beat.env_steps,
            env_steps_per_s=round(beat.env_steps_per_s, 1),
            param_version=beat.param_version,
            heartbeat_age_s=round(age, 2),
            episodes=beat.episodes,
            mean_return=beat.mean_return,
            env_faults=beat.env_faults,
            metrics=beat.metrics,
        )

    def evaluator(self) -> EvaluationsReport:
        """Results of the evaluations so far, and the evaluator's current phase."""
        beats = [m.heartbeat for m in self._members.values() if m.hello.role == "evaluator"]
        newest = beats[-1] if beats else None
        return EvaluationsReport(
            phase=newest.phase if newest is not None else None,
            env_faults=newest.env_faults if newest is not None else 0,
            episodes=self._evaluations,
            mean_return=self._last_evaluation,
            best_mean_return=self.best_return,
            metrics=self._last_metrics,
            episode_steps=newest.env_steps if newest is not None else 0,
        )
