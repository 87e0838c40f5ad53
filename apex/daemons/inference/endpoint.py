"""The endpoint `inference.act`: agents of all actors, and batches of those that ask."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from apex.acting.agent import Agent
from apex.acting.decisions import Exploration, Inputs, JoinedExploration
from apex.algos.base import Policy
from apex.config.sections import Config
from apex.daemons.inference.client import FLAGS
from apex.daemons.status.reports import InferenceReport, to_wire
from apex.data.chunks import Chunk
from apex.data.schema import Array, Arrays
from apex.envs.spec import MAX_REWARD, EnvSpec, StepResult, good_rewards
from apex.errors import SchemaError
from apex.runs.directory import RunFacts
from apex.wire.endpoints import Endpoint
from apex.wire.messages import Act, Actions, Leave, Status, StatusReply, Welcome
from apex.wire.server import Request, Server

log = logging.getLogger("apex.inference")

MAX_AGENTS = 10_000
AGENTS_A_START = 2**32
"""More than a server ever makes for one start of an actor."""


@dataclass
class _Member:
    """An actor and its agent."""

    identity: bytes
    epoch: int
    agent: Agent
    seq: int
    """Of what it has asked last."""
    answer: Array | None = None
    """To that; None while it waits."""


class _Question(NamedTuple):
    """An `Act` that has been checked."""

    message: Act
    result: StepResult
    ended: Array


class AgentNumbers:
    """Numbers the agents of each start of an actor, so that none repeats another's exploration.

    Args:
        first: of an actor that is not known.
        most: slots and incarnations that are remembered.
    """

    def __init__(self, first: int, most: int = MAX_AGENTS) -> None:
        self._first, self._most = first, most
        self._next: dict[tuple[int, int], int] = {}

    def count(self, slot: int, incarnation: int) -> int:
        """One more agent: a number that no agent of this slot and incarnation has had."""
        number = self._next.get((slot, incarnation), self._first)
        self._next[slot, incarnation] = number + 1
        if len(self._next) > self._most:  # what is forgotten may have had any number until now
            self._first = max(self._next.values())
            self._next.clear()
        return number


class ActEndpoint:
    """Keeps an agent for each actor and decides for those that have asked, many at once.

    A batch begins with the first that asks. It is decided when it has `inference.max_batch`
    environments, when everyone has asked, or `inference.max_wait_ms` later. So one that hangs
    holds up nobody for longer than that.

    Args:
        endpoint: where to bind.
        config: of the run.
        facts: of the run.
        make_agent: makes the agent of a slot and incarnation, with the number of those that may
            have been made for them before.
        status: the daemon's own part of STATUS.
        starts: of the inference server in this run, before this one.
        clock: seconds, monotonic.
        max_agents: actors that are known at once; one more, and the oldest is forgotten.
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
        self._asking: OrderedDict[str, float] = OrderedDict()
        """Who waits for an answer, since when; first come, first served."""
        self._max_agents = max_agents
        self._made = AgentNumbers(starts * AGENTS_A_START, max_agents)
        self._left: list[Chunk] = []
        """Of agents that are gone."""

    @property
    def agents(self) -> int:
        """Actors that are known."""
        return len(self._members)

    @property
    def asking(self) -> int:
        """Environments that wait for a decision."""
        return len(self._asking) * self._num_envs

    def receive(self) -> None:
        """Take what has arrived."""
        for request in self.server.receive():
            message, identity = request.message, request.peer.identity
            if isinstance(message, Act):
                self._take(request, message)
            elif isinstance(message, Leave):
                self._retire(request.peer.hello.member)
            elif isinstance(message, Status):
                self.server.send(identity, StatusReply(status=to_wire(self._status())))
        self._forget_silent()

    def _take(self, request: Request, message: Act) -> None:
        identity, name = request.peer.identity, request.peer.hello.member
        try:
            question = checked_question(message, request.arrays, self._spec, self._num_envs)
        except SchemaError as error:
            self.server.refuse(identity, "bad_request", f"act {message.seq}: {error}")
            return
        member = self._members.get(name)
        if member is not None and member.epoch != request.peer.hello.epoch:
            self._retire(name)
            member = None
        if member is not None and message.seq == member.seq:
            member.identity = identity
            self._answer(member)  # which it has missed, or else waits for
        elif message.begins:
            self._begin(request, question, member)
        elif member is None or message.seq != member.seq + 1:
            self.server.refuse(identity, "unknown_agent", "begin, with your last observations")
        elif member.answer is None:
            self.server.refuse(identity, "bad_request", "wait for an answer before the next act")
        else:
            member.agent.observe(question.result)
            self._ask(name, member, message.seq)

    def _begin(self, request: Request, question: _Question, member: _Member | None) -> None:
        hello, message = request.peer.hello, question.message
        if member is None:
            before = self._made.count(message.slot, message.incarnation)
            agent = self._make_agent(message.slot, message.incarnation, before)
            member = _Member(request.peer.identity, hello.epoch, agent, message.seq)
            self._members[hello.member] = member
            if len(self._members) > self._max_agents:
                self._retire(next(iter(self._members)))
        member.identity = request.peer.identity
        member.agent.begin(question.result.observations, question.ended)
        self._ask(hello.member, member, message.seq)

    def _ask(self, name: str, member: _Member, seq: int) -> None:
        member.seq, member.answer = seq, None
        self._asking.setdefault(name, self._clock())

    def _answer(self, member: _Member) -> None:
        if member.answer is not None:
            self.server.send(member.identity, Actions(seq=member.seq), {"actions": member.answer})

    def _retire(self, name: str) -> None:
        """An actor is gone: its episodes are cut, and what they gave is kept."""
        member = self._members.pop(name, None)
        self._asking.pop(name, None)
        if member is not None:
            member.agent.cut()
            self._left += member.agent.flush()

    def _forget_silent(self) -> None:
        here = {peer.hello.member for peer in self.server.peers.values()}
        for name in [name for name in self._members if name not in here]:
            self._retire(name)

    def wait_s(self, most: float) -> float:
        """Seconds until a batch is due, at most `most`."""
        if not self._asking:
            return most
        if len(self._asking) == len(self._members) or self.asking >= self._max_batch:
            return 0.0
        since = next(iter(self._asking.values()))
        return min(most, max(0.0, since + self._max_wait_s - self._clock()))

    def decide(self, policy: Policy, learner_step: int) -> int:
        """Decide for one batch; gives how many environments it had."""
        most = max(1, self._max_batch // self._num_envs)
        names = [name for name, _ in zip(self._asking, range(most))]
        members = [self._members[name] for name in names]
        decision = policy.act(
            Inputs.joined([member.agent.inputs for member in members]),
            JoinedExploration([(_exploration(member), self._num_envs) for member in members]),
        )
        for number, (name, member) in enumerate(zip(names, members)):
            del self._asking[name]
            rows = decision.rows(number * self._num_envs, (number + 1) * self._num_envs)
            member.answer = member.agent.decide(rows, learner_step)
            self._answer(member)
        return len(members) * self._num_envs

    def take_chunks(self) -> list[Chunk]:
        """The chunks that are complete."""
        chunks, self._left = self._left, []
        for member in self._members.values():
            chunks += member.agent.take_chunks()
        return chunks

    def flush(self) -> list[Chunk]:
        """All items that are complete, for an orderly end."""
        chunks = self.take_chunks()
        for member in self._members.values():
            chunks += member.agent.flush()
        return chunks


def _exploration(member: _Member) -> Exploration:
    exploration = member.agent.exploration
    assert exploration is not None  # `make_agent` gives each its own
    return exploration


def checked_question(message: Act, arrays: Arrays, spec: EnvSpec, num_envs: int) -> _Question:
    """The buffers of an `Act`. Raises `SchemaError`."""
    shape = (num_envs, *spec.observation_shape)
    observations = _buffer(arrays, "observations", spec.observation_dtype, shape)
    nothing = np.zeros(num_envs)
    rewards, flags, ended = nothing, dict.fromkeys(FLAGS, nothing), nothing
    if message.begins:
        if "ended" in arrays:
            ended = _buffer(arrays, "ended", "uint8", (num_envs,))
    else:
        rewards = _buffer(arrays, "rewards", "float64", (num_envs,))
        if not good_rewards(rewards):
            raise SchemaError(f"rewards: expected at most {MAX_REWARD:g} in magnitude")
        flags = {name: _buffer(arrays, name, "uint8", (num_envs,)) for name in FLAGS}
    result = StepResult(
        observations, rewards, **{name: flag.astype(np.bool_) for name, flag in flags.items()}
    )
    return _Question(message, result, ended.astype(np.bool_))


def _buffer(arrays: Arrays, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    array = arrays.get(name)
    if array is None or array.dtype != dtype or array.shape != shape:
        found = "none" if array is None else f"{array.dtype} {array.shape}"
        raise SchemaError(f"{name}: expected {dtype} {shape}, got {found}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise SchemaError(f"{name}: a value is not finite")
    return array
