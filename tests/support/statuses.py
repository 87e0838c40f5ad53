"""Reports and statuses of a healthy run, with changes that a test asks for."""

from __future__ import annotations

from typing import Any

from apex.daemons.status.reports import (
    ActorReport,
    InferenceReport,
    LearnerReport,
    ReplayReport,
)
from apex.daemons.status.run_status import EvaluatorSummary, RunStatus, RunSummary


def learner_report(**changed: Any) -> LearnerReport:
    """Report of a learner that computes nearly all the time."""
    values: dict[str, Any] = {
        "state": "training", "pid": 11, "device": "cpu", "learner_step": 500, "train_s": 60.0,
        "updates_per_s": 40.0, "samples_per_s": 1280.0, "data_wait_fraction": 0.05,
        "param_version": 20, "ready_batches": 2, "skipped_updates": 0, "corrupt_items": 0,
        "outcome": None, "open_files": 40, "max_open_files": 20_000,
    }  # fmt: skip
    return LearnerReport(**values | changed)


def replay_report(**changed: Any) -> ReplayReport:
    """Report of a replay server with enough items."""
    values: dict[str, Any] = {
        "state": "running", "pid": 12, "capacity": 10_000, "items": 5_000, "bytes": 160_000,
        "inserts_per_s": 300.0, "samples_per_s": 1280.0, "min_size": 1_000, "waiting_inserts": 0,
        "waiting_samples": 0, "producers": 2, "duplicate_inserts": 0, "refused_by": {},
        "inserted": 5_000, "sampled": 16_000, "evicted": 0, "exhausted": 0,
        "updated_priorities": 16_000, "refused_priorities": 0, "durability": "log",
        "durable": True, "volatile": False, "log_bytes": 90_000, "damaged": 0, "open_files": 40,
        "max_open_files": 20_000, "strangers": 0,
    }  # fmt: skip
    return ReplayReport(**values | changed)


def inference_report(**changed: Any) -> InferenceReport:
    """Report of a running inference server."""
    values: dict[str, Any] = {
        "state": "running", "pid": 13, "device": "cpu", "actors": 2, "decisions_per_s": 300.0,
        "batches_per_s": 100.0, "batch_mean": 3.0, "busy_fraction": 0.5, "param_version": 20,
        "learner_step": 500, "inserted_items": 5_000, "backlog_chunks": 0, "open_files": 40,
        "max_open_files": 20_000, "strangers": 0,
    }  # fmt: skip
    return InferenceReport(**values | changed)


def actor_report(index: int, **changed: Any) -> ActorReport:
    """Report of a running actor."""
    values: dict[str, Any] = {
        "actor_id": f"actor_{index:03d}", "slot": index, "pid": 20 + index, "state": "stepping",
        "env_steps": 2_500, "env_steps_per_s": 150.0, "param_version": 20,
        "heartbeat_age_s": 0.5, "episodes": 30, "mean_return": 21.5,
    }  # fmt: skip
    return ActorReport(**values | changed)


def run_status(**changed: Any) -> RunStatus:
    """Status of a healthy run with two actors; parts are replaced by name, `run` key by key."""
    run: dict[str, Any] = {
        "path": "/runs/x", "env_id": "CartPole-v1", "algorithm": "apex_dqn",
        "engine": "supervisor", "env_steps": 5_000, "frames": 5_000, "uptime_s": 70.0,
        "outcome": None,
    }  # fmt: skip
    parts: dict[str, Any] = {
        "learner": learner_report(),
        "replay": replay_report(),
        "inference": None,
        "actors": (actor_report(0), actor_report(1)),
        "evaluator": EvaluatorSummary(
            state="running", pid=14, phase="idle", episodes=40, mean_return=25.0,
            best_mean_return=30.0,
        ),
    }  # fmt: skip
    summary = RunSummary(**run | changed.pop("run", {}))
    return RunStatus(run=summary, **parts | changed)
