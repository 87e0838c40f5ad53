"""Acknowledged items and checkpoints survive the killing of real daemons."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from apex.runs import checkpoint
from tests.support.suite import Suite


def kill_daemon(suite: Suite, daemon: str) -> int:
    """Kill a daemon with SIGKILL. Returns its process id."""
    pid = suite.run.pid(daemon)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    return pid


def test_replay_server_recovers_its_items_when_killed_and_stops_while_it_reads_its_log(
    suite: Suite, small: tuple[str, ...]
) -> None:
    suite.start(*small, "--set", "replay.save_period_s=0.5")
    before = suite.wait_for(
        lambda s: s["replay"]["items"] > 2000 and s["learner"]["learner_step"] > 100,
        60.0,
        "a filled table",
    )
    assert before["replay"]["durability"] == "log" and before["replay"]["durable"]
    pid = kill_daemon(suite, "replay")
    after = suite.wait_for(
        lambda s: s["replay"]["pid"] not in (None, pid) and s["replay"]["items"] > 0,
        30.0,
        "replay is back",
    )
    assert after["replay"]["items"] >= before["replay"]["items"]
    assert after["replay"]["state"] == "running" and after["replay"]["damaged"] == 0
    suite.wait_for(
        lambda s: (
            s["learner"]["learner_step"] > after["learner"]["learner_step"] + 100
            and s["replay"]["items"] > after["replay"]["items"]
            and s["run"]["health"] == "healthy"
        ),
        30.0,
        "training goes on",
    )
    log = (suite.run.logs / "replay.log").read_text()
    assert re.search(r"recovered \d+ items from 2 producers in [\d.]+ s, 0 damaged places", log)
    assert suite.apex("stop").returncode == 0
    check_stop_while_reading_the_log(suite)


def test_snapshot_is_resumed_with_another_number_of_actors(
    suite: Suite, small: tuple[str, ...]
) -> None:
    suite.start(*small, "--set", "learner.checkpoint_period_s=1000")
    suite.wait_for(
        lambda s: s["learner"]["learner_step"] > 100 and s["run"]["env_steps"], 60.0, "learning"
    )
    done = suite.apex("snapshot", "--json")
    assert done.returncode == 0, done.stderr
    saved = json.loads(done.stdout)
    assert saved["replay"]["durable"] and saved["replay"]["items"] >= 200
    step = saved["learner_step"]
    assert saved["checkpoint"] == f"step_{step:010d}"
    for daemon in ("supervisor", "learner", "replay"):
        if daemon == "supervisor":
            os.kill(json.loads(suite.run.engine_file.read_text())["pid"], signal.SIGKILL)
        elif suite.run.pid(daemon):
            kill_daemon(suite, daemon)
    suite.wait_for(lambda s: s["run"]["health"] == "down", 30.0, "all is down")
    refused = suite.apex("snapshot", timeout_s=20.0)
    assert refused.returncode == 78 and "is down; `apex run --resume` starts it" in refused.stderr
    manifest = checkpoint.newest(suite.run.checkpoints).manifest
    assert manifest.learner_step >= step and manifest.env_steps > 0
    suite.start("--resume", "--actors", "3")
    status = suite.wait_for(
        lambda s: (
            s["learner"]["learner_step"] > step
            and len(s["actors"]) == 3
            and s["run"]["health"] == "healthy"
        ),
        60.0,
        "three actors and a resumed learner",
    )
    assert status["replay"]["items"] >= saved["replay"]["items"]
    assert status["run"]["env_steps"] >= manifest.env_steps


@pytest.mark.parametrize("mode", ["off", "sync"])
def test_status_and_snapshot_report_durability_in_modes_off_and_sync(
    suite: Suite, small: tuple[str, ...], mode: str
) -> None:
    suite.start(*small, "--actors", "1",
                "--set", f"replay.durability={mode}")  # fmt: skip
    status = suite.wait_healthy()
    assert status["replay"]["durable"] is (mode == "sync")
    done = suite.apex("snapshot")
    assert done.returncode == (0 if mode == "sync" else 3), done.stderr
    assert ("NOT on disk" in done.stdout) is (mode == "off")


def check_stop_while_reading_the_log(suite: Suite) -> None:
    """Stop a replay server while it starts: it says so, and leaves the log unchanged."""
    segments = {path: path.read_bytes() for path in suite.run.replay.glob("segment_*")}
    code = f"""
from pathlib import Path
from apex.daemons.replay.daemon import body
from apex.runs.directory import RunDirectory
from apex.daemons.service import serve
def asked_at_once(service):
    service.stop()
    body(service)
serve(RunDirectory(Path({str(suite.path)!r})), "replay", asked_at_once)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert "asked to stop while reading the insert log" in done.stderr
    assert {path: path.read_bytes() for path in suite.run.replay.glob("segment_*")} == segments
