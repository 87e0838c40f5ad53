"""Crash loops: either engine stops restarting a daemon, and the status says why."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.suite import CALM, Suite


def test_engine_gives_up_an_actor_that_is_killed_repeatedly(
    suite: Suite, small: tuple[str, ...]
) -> None:
    suite.start(*small, "--set", "run.max_crashes=3")
    suite.wait_healthy()
    killed: list[int] = []

    def given_up(status: dict[str, Any]) -> bool:
        return any("is not restarted" in alarm for alarm in status["run"]["alarms"])

    def at_work_or_given_up(status: dict[str, Any]) -> bool:
        return given_up(status) or status["actors"][0]["state"] == "stepping"

    for _ in range(4):  # on a machine with other work a life may last too long to count
        for _ in range(3):
            status = suite.wait_for(
                lambda s: s["actors"][0]["pid"] not in (None, *killed) or given_up(s),
                60.0,
                "the actor is back",
            )
            if not given_up(status):
                killed.append(status["actors"][0]["pid"])
                os.kill(killed[-1], signal.SIGKILL)
        status = suite.wait_for(at_work_or_given_up, 60.0, "given up, or at work again")
        if given_up(status):
            break
    (alarm,) = status["run"]["alarms"]
    assert re.sub("crashed [3-9] times", "crashed N times", alarm) == (
        "actor_000 has stopped and is not restarted: crashed N times in a row, giving up; last "
        "error: it was killed, or exited without an error message. See its log; to try again: "
        "`apex actor restart`, or `apex stop` and `apex run --resume`"
    )
    assert status["run"]["health"] == "degraded" and status["actors"][0]["pid"] is None
    step = status["learner"]["learner_step"]
    done = suite.apex("actor", "restart", "0")
    assert done.returncode == 0, done.stderr
    suite.wait_for(
        lambda s: s["run"]["health"] == "healthy" and s["learner"]["learner_step"] > step,
        60.0,
        "all well again, and the others went on",
    )


def test_learner_out_of_device_memory_restarts_from_its_checkpoint_three_times(
    tmp_path: Path, suite: Suite
) -> None:
    """An update raises torch's own error, as a full GPU does."""
    script = tmp_path / "hungry.py"
    script.write_text(
        f"""
import torch
from apex.algos.apex_dqn import ApexDQN
from apex.launch import run

class Hungry(ApexDQN):
    def learner(self, device):
        learner = super().learner(device)
        update, left = learner.update, [300]
        def hungry(batch):
            left[0] -= 1
            if left[0] < 0:
                raise torch.OutOfMemoryError("Tried to allocate 8.00 GiB.")
            return update(batch)
        learner.update = hungry
        return learner

run("cartpole", algorithm=Hungry, path={str(suite.path)!r}, settings=[
    "actor.count=1", "actor.num_envs=2", "replay.min_size=100", {CALM[1]!r},
    "learner.checkpoint_period_s=0.2", "evaluator.enabled=false"])
"""
    )
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=150
    )
    assert done.returncode == 0, done.stderr
    status = suite.wait_for(
        lambda s: any("learner has stopped and is not restarted" in a for a in s["run"]["alarms"]),
        120.0,
        "the learner is given up",
    )
    assert "crashed 3 times in a row" in status["run"]["alarms"][0]
    assert "8.00 GiB. Lower learner.batch_size" in status["run"]["alarms"][0]
    assert 300 < status["learner"]["learner_step"] <= 900, "each start went on from a checkpoint"
    engine_log = (suite.run.logs / "engine.log").read_text()
    assert engine_log.count("exit status 81") == 3 or engine_log.count("code 81") == 3, engine_log
    assert "Traceback" not in (suite.run.logs / "learner.log").read_text()
