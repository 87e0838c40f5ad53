"""Gather a run's status from its daemons and, for those that do not answer, from its directory."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from msgspec.structs import asdict, replace

from apex.acting.episodes import metrics_of
from apex.config.sections import Config
from apex.daemons import restart_backoff
from apex.daemons.catalog import ACTOR, EVALUATOR, INFERENCE, LEARNER, REPLAY, DaemonSpec
from apex.daemons.catalog import daemon_names as configured_names
from apex.daemons.operator_client import ask
from apex.daemons.status.bottleneck import bottleneck
from apex.daemons.status.health import alarms, configured_alarms, health
from apex.daemons.status.last_figures import LastFigures, last_records
from apex.daemons.status.reports import (
    ActorReport,
    Answer,
    EvaluationsReport,
    InferenceReport,
    InferenceSummary,
    LearnerAnswer,
    LearnerSummary,
    ReplayReport,
    ReplaySummary,
)
from apex.daemons.status.run_status import EvaluatorSummary, RunStatus, RunSummary
from apex.errors import DecodeError, RefusedError
from apex.runs import engine_record
from apex.runs.directory import RunDirectory
from apex.runs.engine_record import EngineRecord

STARTING_S = 20.0
"""Age in seconds from which a daemon without an answer is `silent`: hung, or reading a long log."""


def gather(run: RunDirectory) -> RunStatus:
    """Return the status of a run."""
    return _Gathering(run).status()


class _Gathering:
    """Collects the status of a run once."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._config: Config = run.config()
        self._pids = run.living()
        """Process ids of the running daemons, by name."""
        self._saved = _newest_manifest(run)
        self._problems: list[str] = []
        """Alarms about replies that cannot be used."""
        self._engine = engine_record.living_engine(run)
        over = self._engine is None and not self._pids
        self._last = LastFigures(run) if over else None
        """Last figures of a run that has ended."""

    def status(self) -> RunStatus:
        """Ask the daemons, and return the complete status."""
        answer = self._ask(LEARNER, LearnerAnswer)
        status = RunStatus(
            run=self._summary(answer),
            learner=self._learner(answer),
            replay=self._replay(),
            inference=self._inference() if self._config.central else None,
            actors=self._actors(answer.actors if answer is not None else ()),
            evaluator=self._evaluator(answer),
        )
        return self._with_assessment(status)

    def _ask(self, spec: DaemonSpec, report: type[Answer]) -> Answer | None:
        """Return a daemon's answer, or None when it is missing or cannot be used."""
        assert spec.status_endpoint is not None
        if spec.kind not in self._pids:
            return None
        try:
            return ask(self._run, spec.status_endpoint, report)
        except (DecodeError, RefusedError) as error:
            self._problems.append(f"{spec.kind}: {error}")
            return None

    def _state(self, spec: DaemonSpec) -> str:
        """Return the state of a daemon that has not answered."""
        if spec.kind not in self._pids:
            return "down"
        age_s = restart_backoff.age_s(self._run.crash_file(spec.kind))
        return "starting" if age_s < STARTING_S else "silent"

    def _pid(self, spec: DaemonSpec) -> int | None:
        return self._pids.get(spec.kind)

    def _summary(self, answer: LearnerAnswer | None) -> RunSummary:
        env_steps = answer.env_steps if answer is not None else self._saved.get("env_steps", 0)
        env = self._config.env
        engine = self._engine
        return RunSummary(
            path=str(self._run.path),
            env_id=self._run.facts().env.env_id,
            algorithm=self._config.algorithm["name"],
            engine=engine.engine if engine is not None else None,
            env_steps=env_steps,
            frames=env_steps * (env.frame_skip if env.id.startswith("ALE/") else 1),
            uptime_s=round(_uptime(engine), 1) if engine is not None else 0.0,
            outcome=self._run.outcome(),
        )

    def _learner(self, answer: LearnerAnswer | None) -> LearnerSummary:
        if answer is not None:
            return replace(answer.learner, pid=self._pid(LEARNER))
        saved = {k: self._saved[k] for k in ("learner_step", "param_version") if k in self._saved}
        row = LearnerSummary(state=self._state(LEARNER), pid=self._pid(LEARNER), **saved)
        return row if self._last is None else self._last.learner(row)

    def _replay(self) -> ReplaySummary:
        report, pid = self._ask(REPLAY, ReplayReport), self._pid(REPLAY)
        if report is not None:
            return replace(report, pid=pid)
        capacity = self._config.replay.capacity
        row = ReplaySummary(state=self._state(REPLAY), pid=pid, capacity=capacity)
        return row if self._last is None else self._last.replay(row)

    def _inference(self) -> InferenceSummary:
        report, pid = self._ask(INFERENCE, InferenceReport), self._pid(INFERENCE)
        if report is not None:
            return replace(report, pid=pid)
        row = InferenceSummary(state=self._state(INFERENCE), pid=pid)
        return row if self._last is None else self._last.inference(row)

    def _actors(self, reports: tuple[ActorReport, ...]) -> tuple[ActorReport, ...]:
        """Return a row for each configured or attached actor; `pid` is None when it is down."""
        known = {report.actor_id: report for report in reports}
        configured = ACTOR.names(self._config)
        running = {name for name in self._pids if name.startswith(f"{ACTOR.kind}_")}
        foreign = {
            report.actor_id
            for report in reports
            if report.state != "gone" and not self._run.lock_file(report.actor_id).exists()
        }
        attached = sorted((running | foreign) - set(configured))
        rows = [
            _actor(name, known.get(name), self._pids.get(name), foreign=name in foreign)
            for name in configured + attached
        ]
        return tuple(rows if self._last is None else map(self._last.actor, rows))

    def _evaluator(self, answer: LearnerAnswer | None) -> EvaluatorSummary:
        """Return the evaluator's row, from the learner's report or else from its own metrics."""
        pid = self._pid(EVALUATOR)
        known = answer.evaluator if answer is not None else _last_evaluation(self._run, self._saved)
        if pid is None:
            known = replace(known, phase=None)
        return EvaluatorSummary(state="running" if pid is not None else "down", pid=pid,
                                **asdict(known))  # fmt: skip

    def _with_assessment(self, status: RunStatus) -> RunStatus:
        """Add bottleneck, alarms and health."""
        found = (
            *self._problems,
            *alarms(status),
            *configured_alarms(status, self._config),
            *self._crash_alarms(status),
        )
        last = None if self._last is None else self._last.bottleneck(self._config.replay.min_size)
        summary = replace(status.run, alarms=found, bottleneck=last or bottleneck(status))
        status = replace(status, run=summary)
        names = configured_names(self._config)
        return replace(status, run=replace(summary, health=health(status, names)))

    def _crash_alarms(self, status: RunStatus) -> list[str]:
        """Return an alarm for each daemon that crashes or hangs repeatedly or has given up."""
        found, watchdog_s = [], self._config.run.watchdog_s
        for _, name, row in status.rows():
            path = self._run.crash_file(name)
            record = restart_backoff.read(path)
            if record is None:
                continue
            if row.pid is None and record.gave_up:
                found.append(f"{name} has stopped and is not restarted: {record.error}")
            elif row.pid is not None and restart_backoff.in_crash_loop(path):
                found.append(f"{name} crashed {record.crashes} times in a row: {record.error}")
            elif self._last is None and restart_backoff.hangs_again(path, watchdog_s):
                found.append(f"{name} hung {record.hangs} times in a row: {record.error}")
        return found


def _actor(name: str, report: ActorReport | None, pid: int | None, *, foreign: bool) -> ActorReport:
    """Return one actor's row: the learner's report, unless the process's state contradicts it.

    Args:
        name: the actor's name.
        report: the learner's report of it, if any.
        pid: process id of a running actor of this run directory.
        foreign: whether it has no lock file here: it runs on another host, or is not apex's own.
    """
    if pid is None and not (foreign and report):
        known = report or ActorReport(actor_id=name, pid=None, state="down")
        return replace(known, pid=None, state="down")
    if report is None or pid not in (None, report.pid):
        slot = report.slot if report is not None else None
        return ActorReport(actor_id=name, slot=slot, pid=pid, state="starting")
    return report


def _uptime(engine: EngineRecord) -> float:
    """Return the seconds since the engine's start."""
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    return max(0.0, since_boot - engine.started_ticks / os.sysconf("SC_CLK_TCK"))


def _last_evaluation(run: RunDirectory, saved: dict[str, Any]) -> EvaluationsReport:
    """Read the evaluator's last metrics, or the best return of the newest checkpoint."""
    records = last_records(run.metrics / f"{EVALUATOR.kind}.jsonl", 1)
    try:
        return EvaluationsReport(
            mean_return=records[0]["mean_return"],
            best_mean_return=records[0]["best_mean_return"],
            metrics=metrics_of(records[0]),
        )
    except (IndexError, KeyError):
        return EvaluationsReport(best_mean_return=saved.get("best_return"))


def _newest_manifest(run: RunDirectory) -> dict[str, Any]:
    """Read the newest checkpoint's manifest; empty without one. Used when the learner is silent."""
    manifests = sorted(run.checkpoints.glob("step_*/manifest.json"))
    try:
        return dict(json.loads(manifests[-1].read_text())) if manifests else {}
    except (OSError, ValueError):
        return {}
