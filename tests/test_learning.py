"""It learns: real daemons bring CartPole to a mean return of 400 within three minutes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

import apex
from tests.conftest import Suite


def test_cartpole_reaches_400_with_real_daemons(suite: Suite) -> None:
    suite.start("--preset", "cartpole", "--seed", "1", "--until-return", "400")
    status = suite.wait_for(
        lambda s: (s["evaluator"]["best_mean_return"] or 0) >= 400,
        180.0,
        "an evaluation of 20 greedy episodes with a mean return of 400",
    )
    assert status["evaluator"]["mean_return"] is not None
    suite.wait_for(lambda s: s["run"]["engine"] is None, 60.0, "the run has ended by itself")
    assert "until_return" in suite.status()["run"]["outcome"]

    done = suite.apex("eval", "--episodes", "5", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["returns"]) == 5 and result["mean_return"] >= 200

    policy = apex.load_policy(suite.path)
    leaning_right = np.array([0.0, 0.0, 0.15, 0.8], dtype=np.float32)
    assert policy.act(leaning_right) == 1
    assert policy.act(np.stack([leaning_right, -leaning_right])).tolist() == [1, 0]


def test_pong_runs_end_to_end_from_pixels(suite: Suite, tmp_path: Path) -> None:
    suite.start(
        "--preset", "pong", "--engine", "local", "--actors", "1",
        "--set", "replay.min_size=500", "--set", "learner.batch_size=16",
        "--set", "actor.num_envs=4", "--set", "evaluator.enabled=false",
    )  # fmt: skip
    first = suite.wait_healthy()
    later = suite.wait_for(
        lambda s: (
            s["replay"]["items"] > first["replay"]["items"] + 500
            and s["learner"]["learner_step"] > first["learner"]["learner_step"] + 5
            and s["run"]["env_steps"] > first["run"]["env_steps"]
        ),
        60.0,
        "items, learner steps and env steps rise",
    )
    assert later["run"]["frames"] == 4 * later["run"]["env_steps"]
    assert later["replay"]["refused"] == 0
    assert later["replay"]["bytes"] / later["replay"]["items"] < 600
