"""The endpoint `inference.act`: keeps an agent per actor and decides their requests in batches."""

from __future__ import annotations

import logging
import reprlib
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from apex.acting.agent import Agent
from apex.acting.decisions import Exploration, JoinedExploration
from apex.config.sections import Config
from apex.daemons.inference.batched_policy import MAX_IN_FLIGHT, BatchedPolicy, Ticket
from apex.daemons.inference.client import FLAGS
from apex.daemons.status.reports import InferenceReport, to_wire
from apex.data.chunks import Chunk
from apex.data.observations import column_name, from_columns
from apex.data.schema import Array, Arrays
from apex.envs.spec import MAX_REWARD, EnvSpec, ObservationPart, StepResult, good_rewards
from apex.errors import SchemaError
from apex.runs.directory import RunFacts
from apex.wire.endpoints import Endpoint
from apex.wire.messages import Act, Actions, Leave, Status, StatusReply, Welcome
from apex.wire.server import Request, Server

log = logging.getLogger("apex.inference")

MAX_AGENTS = 10_000
AGENTS_PER_START = 2**32
"""More agents than one start of the server ever creates."""


@dataclass
class _Member:
    """An actor and its agent."""

    identity: bytes
    epoch: int
    agent: Agent
    seq: int
    """Number of the last request."""
    answer: Array | None = None
    """Actions for the last request; None while it waits."""


@dataclass(eq=False)
class _Batch:
    """Requests that are being decided together."""

    members: dict[str, _Member]
    """By name, in the order of the batch's rows."""
    ticket: Ticket
    learner_step: int


class _CheckedAct(NamedTuple):
    """An `Act` whose buffers have been checked."""

    message: Act
    result: StepResult
    ended: Array


class AgentNumbers:
    """Numbers the agents of each slot and incarnation, so that no two explore identically.

    Args:
        first: number of the first agent of a slot and incarnation.
        most: slots and incarnations that are remembered.
    """

    def __init__(self, first: int, most: int = MAX_AGENTS) -> None:
        self._first, self._most = first, most
        self._next: dict[tuple[int, int], int] = {}

    def take(self, slot: int, incarnation: int) -> int:
        """Return a number that no agent of this slot and incarnation has had."""
        number = self._next.get((slot, incarnation), self._first)
        self._next[slot, incarnation] = number + 1
        if len(self._next) > self._most:  # forget all; the next numbers exceed those given so far
            self._first = max(self._next.values())
            self._next.clear()
        return number


class ActEndpoint:
    """Keeps one agent per actor and decides their requests in batches.

    A batch begins with its first request. It is decided when it has `inference.max_batch`
    environments, when all actors have sent a request, or after `inference.max_wait_ms`. An actor
    that hangs therefore delays the others by no more than that. Two batches may be in flight. If
    an actor begins again or is removed while its request is in flight, the result is dropped.

    Args:
        endpoint: the address to bind.
        config: the run's.
        facts: the run's.
        make_agent: creates an agent from slot, incarnation and the number of agents that may have
            been created for them before.
        status: called for the reply to STATUS.
        starts: starts of the inference server in this run before this one.
        clock: monotonic time in seconds.
        max_agents: most actors that are known at once; beyond it the oldest is removed.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        config: Config,
        facts: RunFacts,
        make_agent: Callable[[int, int, int], Agent],
        *,
        starts: int = 0,
        status: Callable[[], InferenceReport],
        clock: Callable[[], float] = time.monotonic,
        max_agents: int = MAX_AGENTS,
    ) -> None:
        self._spec = facts.env
        self._num_envs = config.actor.num_envs
        self._max_batch = config.inference.max_batch
        self._max_wait_s = config.inference.max_wait_ms / 1e3
        self._make_agent = make_agent
        self._status = status
        self._clock = clock
        self.server = Server(
            endpoint,
            facts.run_id,
            facts.schema.hash,
            {"actor": (Act, Leave), "operator": (Status,)},
            lambda peer: Welcome(instance=self.server.instance),
        )
        self._members: dict[str, _Member] = {}
        self._waiting: OrderedDict[str, float] = OrderedDict()
        """Arrival time of each request that is in no batch yet, by actor; oldest first."""
        self._batches: deque[_Batch] = deque()
        """Batches in flight, oldest first."""
        self._deciding: dict[str, _Batch] = {}
        """The batch of each request that is in flight, by actor."""
        self._max_agents = max_agents
        self._agent_numbers = AgentNumbers(starts * AGENTS_PER_START, max_agents)
        self._chunks_of_removed: list[Chunk] = []
        """Chunks of removed agents."""

    @property
    def agents(self) -> int:
        """Number of known actors."""
        return len(self._members)

    @property
    def waiting_envs(self) -> int:
        """Environments that wait for a batch."""
        return len(self._waiting) * self._num_envs

    def receive(self) -> None:
        """Process received messages."""
        for request in self.server.receive():
            message, identity = request.message, request.peer.identity
            if isinstance(message, Act):
                self._on_act(request, message)
            elif isinstance(message, Leave):
                self._remove(request.peer.hello.member)
            elif isinstance(message, Status):
                self.server.send(identity, StatusReply(status=to_wire(self._status())))
        self._remove_silent()

    def _on_act(self, request: Request, message: Act) -> None:
        identity, name = request.peer.identity, request.peer.hello.member
        try:
            act = check_act(message, request.arrays, self._spec, self._num_envs)
        except SchemaError as error:
            self.server.refuse(identity, "bad_request", f"act {message.seq}: {error}")
            return
        member = self._members.get(name)
        if member is not None and member.epoch != request.peer.hello.epoch:
            self._remove(name)
            member = None
        if member is not None and message.seq == member.seq:
            member.identity = identity
            self._answer(member)  # repeats a lost answer; nothing is sent while it waits
        elif message.begins:
            self._begin(request, act, member)
        elif member is None or message.seq != member.seq + 1:
            self.server.refuse(
                identity,
                "unknown_agent",
                "this actor's state is unknown: send an act with begins = true and the last "
                "observations",
            )
        elif member.answer is None:
            self.server.refuse(identity, "bad_request", "wait for the reply before the next act")
        else:
            member.agent.observe(act.result)
            self._enqueue(name, member, message.seq)

    def _begin(self, request: Request, act: _CheckedAct, member: _Member | None) -> None:
        hello, message = request.peer.hello, act.message
        if member is not None and member.answer is None:
            # An agent cannot cut its episodes at an observation that has no decision.
            self._remove(hello.member)
            member = None
        if member is None:
            number = self._agent_numbers.take(message.slot, message.incarnation)
            agent = self._make_agent(message.slot, message.incarnation, number)
            member = _Member(request.peer.identity, hello.epoch, agent, message.seq)
            self._members[hello.member] = member
            if len(self._members) > self._max_agents:
                self._remove(next(iter(self._members)))
        member.identity = request.peer.identity
        member.agent.begin(act.result.observations, act.ended)
        self._enqueue(hello.member, member, message.seq)

    def _enqueue(self, name: str, member: _Member, seq: int) -> None:
        member.seq, member.answer = seq, None
        self._deciding.pop(name, None)
        self._waiting.setdefault(name, self._clock())

    def _answer(self, member: _Member) -> None:
        if member.answer is not None:
            self.server.send(member.identity, Actions(seq=member.seq), {"actions": member.answer})

    def _remove(self, name: str) -> None:
        """Remove an actor: truncate its episodes and keep their items."""
        member = self._members.pop(name, None)
        self._waiting.pop(name, None)
        self._deciding.pop(name, None)
        if member is not None:
            member.agent.cut()
            self._chunks_of_removed += member.agent.flush()

    def _remove_silent(self) -> None:
        connected = {peer.hello.member for peer in self.server.peers.values()}
        for name in [name for name in self._members if name not in connected]:
            self._remove(name)

    def wait_s(self, limit_s: float) -> float:
        """Return the seconds until a batch is due, at most `limit_s`."""
        if not self._waiting:
            return limit_s
        asking = len(self._waiting) + len(self._deciding)
        if asking == len(self._members) or self.waiting_envs >= self._max_batch:
            return 0.0
        since = next(iter(self._waiting.values()))
        return min(limit_s, max(0.0, since + self._max_wait_s - self._clock()))

    @property
    def in_flight(self) -> int:
        """Batches that have begun and are not finished."""
        return len(self._batches)

    @property
    def must_finish(self) -> bool:
        """Whether to finish the oldest batch now: it is done, or no other batch can begin."""
        if not self._batches:
            return False
        none_asks = len(self._deciding) == len(self._members)
        return self.in_flight == MAX_IN_FLIGHT or none_asks or self._batches[0].ticket.done()

    def begin(self, policy: BatchedPolicy, learner_step: int) -> int:
        """Begin to decide the oldest requests; returns the number of environments."""
        max_actors = max(1, self._max_batch // self._num_envs)
        names = [name for name, _ in zip(self._waiting, range(max_actors))]
        members = {name: self._members[name] for name in names}
        ticket = policy.begin(
            [member.agent.inputs for member in members.values()],
            JoinedExploration([(_exploration(m), self._num_envs) for m in members.values()]),
        )
        batch = _Batch(members, ticket, learner_step)
        self._batches.append(batch)
        for name in names:
            del self._waiting[name]
            self._deciding[name] = batch
        return len(members) * self._num_envs

    def finish(self) -> None:
        """Finish the oldest batch, which may wait for the device, and send its actions."""
        batch = self._batches.popleft()
        decision = batch.ticket.finish()
        for position, (name, member) in enumerate(batch.members.items()):
            if self._deciding.get(name) is batch:
                del self._deciding[name]
                begin = position * self._num_envs
                rows = decision.rows(begin, begin + self._num_envs)
                member.answer = member.agent.decide(rows, batch.learner_step)
                self._answer(member)

    def take_chunks(self) -> list[Chunk]:
        """Remove and return the complete chunks."""
        chunks, self._chunks_of_removed = self._chunks_of_removed, []
        for member in self._members.values():
            chunks += member.agent.take_chunks()
        return chunks

    def flush(self) -> list[Chunk]:
        """Remove and return all complete items, also as partial chunks, before an orderly exit."""
        chunks = self.take_chunks()
        for member in self._members.values():
            chunks += member.agent.flush()
        return chunks


def _exploration(member: _Member) -> Exploration:
    exploration = member.agent.exploration
    assert exploration is not None  # `make_agent` always sets it
    return exploration


def check_act(message: Act, arrays: Arrays, spec: EnvSpec, num_envs: int) -> _CheckedAct:
    """Check the buffers of an `Act`; buffers that it does not need are ignored.

    Raises:
        SchemaError: a buffer is missing or invalid.
    """
    columns = {column_name(part.name): _part(arrays, part, num_envs) for part in spec.all_parts}
    observations = from_columns(columns, [part.name for part in spec.parts])
    zeros = np.zeros(num_envs)
    rewards, flags, ended = zeros, dict.fromkeys(FLAGS, zeros), zeros
    if message.begins:
        if "ended" in arrays:
            ended = _buffer(arrays, "ended", "uint8", (num_envs,))
    else:
        rewards = _buffer(arrays, "rewards", "float64", (num_envs,))
        if not good_rewards(rewards):
            raise SchemaError(f"rewards: expected magnitudes of at most {MAX_REWARD:g}")
        flags = {name: _buffer(arrays, name, "uint8", (num_envs,)) for name in FLAGS}
    terminated, truncated, life_lost = (flags[name].astype(np.bool_) for name in FLAGS)
    result = StepResult(observations, rewards, terminated, truncated, life_lost)
    return _CheckedAct(message, result, ended.astype(np.bool_))


def _part(arrays: Arrays, part: ObservationPart, num_envs: int) -> Array:
    """The buffer of a part of the observations."""
    name = column_name(part.name)
    array = _buffer(arrays, name, part.dtype, (num_envs, *part.shape))
    wrong = part.invalid(array)
    if wrong.any():
        below = f"numbers from 0 and below {reprlib.repr(part.choices)}"
        expected = "an allowed action" if part.kind == "mask" else below
        found = reprlib.repr(array[wrong][0].tolist())
        raise SchemaError(f"{name}: expected {expected} in each environment, got {found}")
    return array


def _buffer(arrays: Arrays, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    array = arrays.get(name)
    if array is None or array.dtype != dtype or array.shape != shape:
        found = "no such buffer" if array is None else f"{array.dtype} {array.shape}"
        raise SchemaError(f"{name}: expected {dtype} {shape}, got {found}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise SchemaError(f"{name}: expected finite values, got NaN or infinity")
    return array
