"""Serves parameters and membership at `learner.params`, from a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from apex.daemons.learner.membership import Membership
from apex.daemons.learner.parameter_versions import PublicationBoard
from apex.daemons.status.reports import LearnerAnswer, LearnerReport, to_wire
from apex.runs.checkpoint import ActorRecord
from apex.runs.directory import RunFacts
from apex.wire.endpoints import Endpoints
from apex.wire.messages import (
    Ack,
    EvaluationReport,
    GetParams,
    Heartbeat,
    HeartbeatAck,
    Hello,
    NotModified,
    Params,
    Snapshot,
    SnapshotReply,
    Status,
    StatusReply,
    Welcome,
)
from apex.wire.server import Request, Server
from apex.wire.sockets import Poller, Waker, connections

log = logging.getLogger("apex.learner")


class SnapshotAsker(NamedTuple):
    """Who waits for a snapshot."""

    identity: bytes
    snapshot_id: int


class ParamsServer:
    """Answers actors, evaluators and operators while the training thread trains.

    Args:
        endpoints: where to bind.
        facts: of the run.
        num_actors: configured actors.
        env_steps: made before this start.
        records: of the actors, as of then.
        board: where the training thread publishes.
        starts: of the learner in this run, before this one.
        status: the learner's own part of STATUS; called on the serving thread.
        on_evaluation: called with each evaluation's mean return, on the serving thread.
        on_snapshot: called when one asks for a snapshot, on the serving thread; the learner says
            `snapshot_taken` when it is there.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        facts: RunFacts,
        num_actors: int,
        env_steps: int,
        records: Mapping[str, ActorRecord],
        board: PublicationBoard,
        *,
        starts: int = 0,
        status: Callable[[], LearnerReport],
        on_evaluation: Callable[[float], None],
        on_snapshot: Callable[[], None],
    ) -> None:
        self._server = Server(
            endpoints.of("learner.params"),
            facts.run_id,
            facts.schema.hash,
            {
                "actor": (GetParams, Heartbeat),
                "evaluator": (GetParams, Heartbeat, EvaluationReport),
                "inference": (GetParams,),
                "operator": (Status, Snapshot),
            },
            lambda peer: self._greet(peer.hello),
        )
        self.membership = Membership(
            num_actors, self._server.instance, env_steps, records, starts=starts
        )
        self._lock = threading.Lock()
        self._board = board
        self._status = status
        self._on_evaluation = on_evaluation
        self._on_snapshot = on_snapshot
        self._snapshot_askers: list[SnapshotAsker] = []
        self._snapshots: SimpleQueue[tuple[list[SnapshotAsker], dict[str, Any]]] = SimpleQueue()
        self._waker = Waker()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="params-server", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def _greet(self, hello: Hello) -> Welcome:
        if hello.role == "operator":
            return Welcome(instance=self._server.instance)
        with self._lock:
            return self.membership.greet(hello)

    @property
    def env_steps(self) -> int:
        """Environment steps of all actors, since the run's first start."""
        with self._lock:
            return self.membership.env_steps

    def counted(self) -> tuple[int, dict[str, ActorRecord], float | None]:
        """All environment steps, what each actor has in them, and the best evaluation."""
        with self._lock:
            book = self.membership
            return book.env_steps, dict(book.records), book.best_return

    def _serve(self) -> None:
        poller = Poller(self._server, self._waker)
        while not self._closing:
            poller.wait(1.0)
            self._waker.clear()
            for request in self._server.receive():
                self._take(request)
            self._answer_snapshots()
        self._server.close()

    def _take(self, request: Request) -> None:
        message, identity = request.message, request.peer.identity
        if isinstance(message, GetParams):
            self._send_params(identity, message.newer_than)
        elif isinstance(message, Heartbeat):
            if not np.isfinite([message.env_steps_per_s, message.mean_return or 0.0]).all():
                self._server.refuse(identity, "bad_request", "a heartbeat has finite values")
                return
            self._take_heartbeat(request, message)
        elif isinstance(message, EvaluationReport):
            if not message.returns or not np.isfinite(message.returns).all():
                self._server.refuse(identity, "bad_request", "an evaluation has finite returns")
                return
            with self._lock:
                mean = self.membership.evaluation(message)
            self._server.send(identity, Ack())
            self._on_evaluation(mean)
        elif isinstance(message, Status):
            self._server.send(identity, StatusReply(status=to_wire(self.status())))
        elif isinstance(message, Snapshot):
            with self._lock:
                self._snapshot_askers.append(SnapshotAsker(identity, message.snapshot_id))
            self._on_snapshot()

    def snapshot_begins(self) -> list[SnapshotAsker]:
        """Who has asked for a snapshot until now; any thread may call it."""
        with self._lock:
            askers, self._snapshot_askers = self._snapshot_askers, []
        return askers

    def snapshot_taken(self, askers: list[SnapshotAsker], saved: dict[str, Any]) -> None:
        """Tell those who asked; any thread may call it."""
        self._snapshots.put((askers, saved))
        self._waker.wake()

    def _answer_snapshots(self) -> None:
        while not self._snapshots.empty():
            askers, saved = self._snapshots.get()
            for asker in askers:
                reply = SnapshotReply(snapshot_id=asker.snapshot_id, saved=saved)
                self._server.send(asker.identity, reply)

    def _take_heartbeat(self, request: Request, message: Heartbeat) -> None:
        newest, hello = self._board.newest(), request.peer.hello
        with self._lock:
            known = self.membership.knows(hello)
            if known:
                self.membership.heartbeat(hello, message)
        if not known:
            self._server.refuse(request.peer.identity, "hello_required", "say HELLO again")
            return
        learner_step = newest.learner_step if newest else 0
        self._server.send(request.peer.identity, HeartbeatAck(learner_step=learner_step))

    def _send_params(self, identity: bytes, newer_than: int) -> None:
        newest = self._board.newest()
        if newest is None or newest.param_version <= newer_than:
            self._server.send(identity, NotModified())
            return
        self._server.send(
            identity,
            Params(
                param_version=newest.param_version,
                learner_step=newest.learner_step,
                env_steps=newest.env_steps,
                train_s=newest.train_s,
                crc32=newest.crc32,
            ),
            {"parameters": np.frombuffer(newest.data, dtype=np.uint8)},
        )

    def status(self) -> LearnerAnswer:
        """The whole answer to STATUS."""
        refused = sum(self._server.refused.values())
        with self._lock:
            return LearnerAnswer(
                learner=replace(self._status(), refused=refused, **connections()._asdict()),
                env_steps=self.membership.env_steps,
                actors=self.membership.actors(),
                evaluator=self.membership.evaluator(),
            )

    def close(self) -> None:
        """End the thread and unbind."""
        self._closing = True
        self._waker.wake()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
