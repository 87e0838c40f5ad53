"""Status of a run: ask its daemons, then derive health, bottleneck and alarms."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

from apex.daemons import restart_backoff
from apex.daemons.operator_client import ask
from apex.runs.directory import RunDirectory

if TYPE_CHECKING:
    pass


HEALTHY_ACTORS = ("stepping", "waiting_for_credit", "waiting_for_actions")
FULL = 0.8
"""Share of its open files from which a daemon is in danger."""
BUSY_LEARNER = 0.1
"""Share of its time up to which a learner may wait for data and still be the bottleneck."""

STARTING_S = 20.0
"""Age from which a daemon that does not answer is called silent: it hangs, or reads a long log."""


def gather(run: RunDirectory) -> dict[str, Any]:
    """The status object of a run, as `apex status --json` prints it."""
    from apex.runs import engine_record

    config, living = run.config(), run.living()
    asked = ask(run, "learner.params") if "learner" in living else None
    replay = ask(run, "replay.sample") if "replay" in living else None
    learner = (asked or {}).get("learner") or {"state": _state(run, "learner", living)}
    saved = _newest_manifest(run)
    env_steps = (asked or {}).get("env_steps", saved.get("env_steps", 0))
    frame_skip = config.env.frame_skip if config.env.id.startswith("ALE/") else 1
    record = engine_record.living_engine(run)
    status: dict[str, Any] = {
        "run": {
            "path": str(run.path),
            "env_id": run.facts().env.env_id,
            "algorithm": config.algorithm["name"],
            "engine": record.engine if record else None,
            "env_steps": env_steps,
            "frames": env_steps * frame_skip,
            "uptime_s": round(_uptime(run), 1),
            "outcome": _outcome(run),
        },
        "learner": {
            **_EMPTY_LEARNER,
            **{key: saved[key] for key in ("learner_step", "param_version") if key in saved},
            **learner,
            "pid": living.get("learner"),
        },
        "replay": {
            **_EMPTY_REPLAY,
            "capacity": config.replay.capacity,
            "state": _state(run, "replay", living),
            **(replay or {}),
            "pid": living.get("replay"),
        },
        "inference": _inference(run, living) if config.central else None,
        "actors": _actors(run, config.actor.count, (asked or {}).get("actors", []), living),
        "evaluator": _evaluator(run, saved, (asked or {}).get("evaluator", {}), living),
    }
    status["run"]["bottleneck"] = bottleneck(status)
    status["run"]["alarms"] = alarms(status) + _crash_loops(run, status)
    status["run"]["health"] = health(status, evaluator=config.evaluator.enabled)
    return status


_EMPTY_LEARNER = {
    "state": "down",
    "learner_step": 0,
    "updates_per_s": 0.0,
    "samples_per_s": 0.0,
    "data_wait_fraction": None,
    "param_version": -1,
    "learning_rate": None,
    "rollbacks": 0,
    "alarm": None,
}
_EMPTY_REPLAY = {
    "items": 0,
    "bytes": 0,
    "inserts_per_s": 0.0,
    "samples_per_s": 0.0,
    "stale_priorities": 0,
    "refused": 0,
    "durable": False,
    "alarm": None,
}
_EMPTY_INFERENCE = {
    "actors": 0,
    "decisions_per_s": 0.0,
    "batch_mean": 0.0,
    "busy_fraction": None,
    "param_version": -1,
    "refused": 0,
}
_EMPTY_ACTOR = {
    "env_steps": 0,
    "env_steps_per_s": 0.0,
    "param_version": -1,
    "heartbeat_age_s": None,
    "episodes": 0,
    "mean_return": None,
    "env_faults": 0,
}


def _state(run: RunDirectory, daemon: str, living: dict[str, int]) -> str:
    """Of a daemon that has not answered."""
    if daemon not in living:
        return "down"
    return "starting" if restart_backoff.age_s(run.crash_file(daemon)) < STARTING_S else "silent"


def _actors(
    run: RunDirectory, count: int, rows: list[dict[str, Any]], living: dict[str, int]
) -> list[dict[str, Any]]:
    """One row for each configured or attached actor; `pid` is None while it is down."""
    known = {row["actor_id"]: row for row in rows}
    configured = [f"actor_{index:03d}" for index in range(count)]
    here = {name for name in living if name.startswith("actor_")}
    elsewhere = {
        row["actor_id"]
        for row in rows
        if row["state"] != "gone" and not run.lock_file(row["actor_id"]).exists()
    }
    others = here | elsewhere
    return [
        _actor(name, known.get(name), living.get(name), elsewhere=name in elsewhere)
        for name in configured + sorted(others - set(configured))
    ]


def _actor(
    name: str, row: dict[str, Any] | None, pid: int | None, *, elsewhere: bool
) -> dict[str, Any]:
    """One actor's row: by the learner's book, unless its process says otherwise.

    Args:
        name: of the actor.
        row: what the learner knows of it.
        pid: of its living process in this run's directory.
        elsewhere: it has no lock in this run's directory: a client of another make.
    """
    base = {"actor_id": name, "slot": None, "state": "starting", **_EMPTY_ACTOR, "pid": pid}
    if pid is None and not (elsewhere and row):
        return {**base, **(row or {}), "pid": None, "state": "down"}
    if row is None or pid not in (None, row["pid"]):
        return {**base, "slot": row["slot"] if row else None}
    return {**base, **row}


def _inference(run: RunDirectory, living: dict[str, int]) -> dict[str, Any]:
    """The inference server, by its own word."""
    answer = ask(run, "inference.act") if "inference" in living else None
    return {
        **_EMPTY_INFERENCE,
        "state": _state(run, "inference", living),
        **(answer or {}),
        "pid": living.get("inference"),
    }


def _evaluator(
    run: RunDirectory, saved: dict[str, Any], known: dict[str, Any], living: dict[str, int]
) -> dict[str, Any]:
    """The evaluator: by the learner's book, or by its own file while the learner is down."""
    alive = "evaluator" in living
    return {
        "episodes": 0,
        "env_faults": 0,
        "mean_return": None,
        "best_mean_return": saved.get("best_return"),
        **_last_evaluation(run),
        **known,
        "state": "running" if alive else "down",
        "pid": living.get("evaluator"),
        "phase": known.get("phase") if alive else None,
    }


def _uptime(run: RunDirectory) -> float:
    from apex.runs import engine_record

    record = engine_record.living_engine(run)
    if record is None:
        return 0.0
    with open("/proc/uptime", encoding="ascii") as file:
        since_boot = float(file.read().split()[0])
    return max(0.0, since_boot - record.started_ticks / os.sysconf("SC_CLK_TCK"))


def _outcome(run: RunDirectory) -> str | None:
    try:
        return str(json.loads(run.outcome_file.read_text())["reason"])
    except (FileNotFoundError, ValueError, KeyError):
        return None


def _last_evaluation(run: RunDirectory) -> dict[str, Any]:
    """What the evaluator wrote last, for a run that is down."""
    try:
        lines = (run.metrics / "evaluator.jsonl").read_text().splitlines()
        last = json.loads(lines[-1])
        return {name: last[name] for name in ("mean_return", "best_mean_return")}
    except (OSError, ValueError, IndexError, KeyError):
        return {}


def _newest_manifest(run: RunDirectory) -> dict[str, Any]:
    """What the newest checkpoint says, for a learner that does not answer."""
    manifests = sorted(run.checkpoints.glob("step_*/manifest.json"))
    try:
        return dict(json.loads(manifests[-1].read_text())) if manifests else {}
    except (OSError, ValueError):
        return {}


def bottleneck(status: dict[str, Any]) -> str:
    """Which part holds the others back, in words."""
    learner, replay, actors = status["learner"], status["replay"], status["actors"]
    if learner["pid"] is None or replay["pid"] is None:
        return "down: " + ("learner" if learner["pid"] is None else "replay")
    waiting = learner["state"] == "waiting" or replay["state"] == "recovering"
    if waiting and replay["items"] < replay.get("min_size", 0):
        return f"warm-up: replay has {replay['items']} of the {replay['min_size']} items to start"
    wait = learner["data_wait_fraction"]
    blocked = [row for row in actors if row["state"] == "waiting_for_credit"]
    if wait is not None and wait > BUSY_LEARNER:
        if replay.get("waiting_samples"):
            return "actors: the learner waits for their items (samples_per_insert)"
        return "data path: the learner waits for batches that replay could serve"
    if blocked:
        return "learner: actors wait for it (samples_per_insert)"
    return "learner: it computes all the time"


def alarms(status: dict[str, Any]) -> list[str]:
    """What a person should look after, by what the daemons say of themselves."""
    found = []
    if status["replay"]["alarm"]:
        found.append(f"inserts are not durable: {status['replay']['alarm']}")
    if status["learner"]["alarm"]:
        found.append(f"the newest training is not saved: {status['learner']['alarm']}")
    if status["learner"].get("learning_rate") == 0:
        found.append(
            "the learning rate is 0: nothing is learned any more. `apex stop` ends the run; `apex "
            "run --resume --set algorithm.final_learning_rate_fraction=0.1` after it lets it learn "
            "again"
        )
    for daemon in ("learner", "replay", "inference"):
        if status.get(daemon) is None:
            continue
        files, most = (status[daemon].get(key, 0) for key in ("open_files", "max_open_files"))
        if files > FULL * most:
            found.append(
                f"{daemon} has {files} of at most {most} open files: a flood of connections?"
            )
    return found


def _crash_loops(run: RunDirectory, status: dict[str, Any]) -> list[str]:
    """Daemons that crash again and again, and those that gave up, with the reason."""
    daemons = ("learner", "replay", "inference", "evaluator")
    rows = [(name, status[name]) for name in daemons if status[name] is not None]
    rows += [(row["actor_id"], row) for row in status["actors"]]
    found = []
    for name, row in rows:
        record = restart_backoff.read(run.crash_file(name))
        if record is None:
            continue
        if row["pid"] is None and record.gave_up:
            found.append(f"{name} is not started again: {record.error}")
        elif row["pid"] is not None and restart_backoff.loops(run.crash_file(name)):
            found.append(f"{name} crashed {record.crashes} times in a row: {record.error}")
    return found


def health(status: dict[str, Any], *, evaluator: bool) -> str:
    """`healthy` when all configured daemons do their work, else `degraded` or `down`."""
    learner, replay = status["learner"], status["replay"]
    if learner["pid"] is None and replay["pid"] is None:
        return "down"
    whole = (
        learner["state"] in ("waiting", "training")
        and replay["state"] == "running"
        and not status["run"]["alarms"]
        and (status["inference"] is None or status["inference"]["state"] == "running")
        and (not evaluator or status["evaluator"]["pid"] is not None)
        and all(row["state"] in HEALTHY_ACTORS for row in status["actors"])
    )
    return "healthy" if whole else "degraded"
