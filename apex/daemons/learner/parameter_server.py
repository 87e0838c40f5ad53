"""The endpoint `learner.params`: serves parameters and membership from its own thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
from msgspec.structs import replace

from apex.daemons.learner.membership import Membership
from apex.daemons.learner.moment_sender import read_moments
from apex.daemons.learner.parameter_versions import PublicationBoard
from apex.daemons.learner.running_statistics import RunningStatistics
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
    MomentsAck,
    NotModified,
    Params,
    ReportMoments,
    Snapshot,
    SnapshotReply,
    Status,
    StatusReply,
    Welcome,
)
from apex.wire.server import Request, Server
from apex.wire.sockets import Poller, Waker, connections

log = logging.getLogger("apex.learner")


class SnapshotRequester(NamedTuple):
    """A peer that waits for a snapshot."""

    identity: bytes
    snapshot_id: int


class ParameterServer:
    """Serves actors, evaluators and operators from its own thread, beside the training thread.

    Args:
        endpoints: addresses of the run.
        facts: the run's.
        num_actors: number of configured actors.
        env_steps: environment steps before this start.
        records: the actors' records at that time.
        board: where the training thread publishes.
        statistics: counts reports of moments; None: the run does not normalise.
        starts: starts of the learner in this run before this one.
        status: returns the learner's part of STATUS; called on the serving thread.
        on_evaluation: called on the serving thread with the mean return of each evaluation.
        on_snapshot: called on the serving thread when a peer requests a snapshot; the learner
            then calls `take_snapshot_requesters` and, at the end, `reply_to_snapshot`.
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
        statistics: RunningStatistics | None = None,
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
                "actor": (GetParams, Heartbeat, ReportMoments),
                "evaluator": (GetParams, Heartbeat, EvaluationReport),
                "inference": (GetParams, ReportMoments),
                "operator": (Status, Snapshot),
            },
            lambda peer: self._greet(peer.hello),
        )
        self.membership = Membership(
            num_actors, self._server.instance, env_steps, records, starts=starts
        )
        self._lock = threading.Lock()
        self._board = board
        self._statistics = statistics
        self._status = status
        self._on_evaluation = on_evaluation
        self._on_snapshot = on_snapshot
        self._requesters: list[SnapshotRequester] = []
        self._snapshots: SimpleQueue[tuple[list[SnapshotRequester], dict[str, Any]]] = SimpleQueue()
        """Finished snapshots whose requesters have no reply yet."""
        self._waker = Waker()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="params-server", daemon=True)

    def start(self) -> None:
        """Start the serving thread."""
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
        """Environment steps of all actors, the actors' records, and the best mean return."""
        with self._lock:
            members = self.membership
            return members.env_steps, dict(members.records), members.best_return

    def _serve(self) -> None:
        poller = Poller(self._server, self._waker)
        while not self._closing:
            poller.wait(1.0)
            self._waker.clear()
            for request in self._server.receive():
                self._handle(request)
            self._reply_to_snapshots()
        self._server.close()

    def _handle(self, request: Request) -> None:
        message, identity = request.message, request.peer.identity
        if isinstance(message, GetParams):
            self._send_params(identity, message.newer_than)
        elif isinstance(message, Heartbeat):
            rates = (message.env_steps_per_s, message.mean_return or 0.0)
            if not np.isfinite([*rates, *message.metrics.values()]).all():
                self._server.refuse(
                    identity,
                    "bad_request",
                    "heartbeat: expected finite values, got NaN or infinity",
                )
                return
            self._on_heartbeat(request, message)
        elif isinstance(message, ReportMoments):
            self._on_moments(request, message)
        elif isinstance(message, EvaluationReport):
            figures = (*message.returns, *message.metrics.values())
            if not message.returns or not np.isfinite(figures).all():
                self._server.refuse(
                    identity,
                    "bad_request",
                    "evaluation: expected one or more finite returns, and finite metrics",
                )
                return
            with self._lock:
                mean = self.membership.evaluation(message)
            self._server.send(identity, Ack())
            self._on_evaluation(mean)
        elif isinstance(message, Status):
            self._server.send(identity, StatusReply(status=to_wire(self.status())))
        elif isinstance(message, Snapshot):
            with self._lock:
                self._requesters.append(SnapshotRequester(identity, message.snapshot_id))
            self._on_snapshot()

    def take_snapshot_requesters(self) -> list[SnapshotRequester]:
        """Remove and return the peers that have requested a snapshot. Thread-safe."""
        with self._lock:
            requesters, self._requesters = self._requesters, []
        return requesters

    def reply_to_snapshot(self, requesters: list[SnapshotRequester], saved: dict[str, Any]) -> None:
        """Send a finished snapshot's reply to its requesters. Thread-safe."""
        self._snapshots.put((requesters, saved))
        self._waker.wake()

    def _reply_to_snapshots(self) -> None:
        while not self._snapshots.empty():
            requesters, saved = self._snapshots.get()
            for requester in requesters:
                reply = SnapshotReply(snapshot_id=requester.snapshot_id, saved=saved)
                self._server.send(requester.identity, reply)

    def _on_heartbeat(self, request: Request, message: Heartbeat) -> None:
        newest, hello = self._board.newest(), request.peer.hello
        with self._lock:
            known = self.membership.knows(hello)
            if known:
                self.membership.heartbeat(hello, message)
        if not known:
            self._server.refuse(request.peer.identity, "hello_required", "send HELLO again")
            return
        learner_step = newest.learner_step if newest else 0
        self._server.send(request.peer.identity, HeartbeatAck(learner_step=learner_step))

    def _on_moments(self, request: Request, message: ReportMoments) -> None:
        """Count a report of moments once, and acknowledge it each time.

        An invalid one is acknowledged, too: it would be no better when sent again.
        """
        identity, hello = request.peer.identity, request.peer.hello
        with self._lock:
            known = self.membership.knows(hello)
        if not known:
            self._server.refuse(identity, "hello_required", "send HELLO again")
            return
        if self._statistics is None:
            self._server.refuse(identity, "bad_request", "moments: this run normalises nothing")
            return
        moments = read_moments(message, request.arrays, self._statistics.sizes)
        if isinstance(moments, str):
            self._server.refuse(identity, "bad_request", f"moments {message.seq}: {moments}")
        else:
            self._statistics.count(hello.member, hello.epoch, message.seq, moments)
        self._server.send(identity, MomentsAck(seq=message.seq))

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
        """The complete reply to STATUS."""
        refused = sum(self._server.refused.values())
        report = self._status()  # may wait for a GPU: the training thread also takes the lock
        with self._lock:
            return LearnerAnswer(
                learner=replace(report, refused=refused, **connections()._asdict()),
                env_steps=self.membership.env_steps,
                actors=self.membership.actors(),
                evaluator=self.membership.evaluator(),
            )

    def close(self) -> None:
        """Stop the thread and unbind the endpoint."""
        self._closing = True
        self._waker.wake()
        if self._thread.is_alive():
            self._thread.join(timeout=5.0)
