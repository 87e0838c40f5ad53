"""Learning tests: real daemons reach a good mean return on small environments within minutes.

`make test` runs the tests that are not marked `learning`; `make test-learning` runs all.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

import apex
from tests.support.paths import ROOT
from tests.support.suite import Suite

LEARN_S = 300.0
LEARN_TIMEOUT = pytest.mark.timeout(LEARN_S + 180)
"""Includes the start, the end and the evaluation of the best checkpoint."""


def learn(suite: Suite, preset: str, mean_return: float, *arguments: str) -> None:
    """Train a preset until an evaluation reaches a mean return."""
    learn_with(suite, mean_return, "--preset", preset, *arguments)


def learn_with(suite: Suite, mean_return: float, *arguments: str) -> None:
    """Start a run with `--until-return`, and check that it reaches it and ends."""
    suite.start(*arguments, "--seed", "1", "--until-return", str(mean_return))
    suite.wait_for(
        lambda s: (s["evaluator"]["best_mean_return"] or -np.inf) >= mean_return,
        LEARN_S,
        f"an evaluation of 20 greedy episodes with a mean return of {mean_return}",
    )
    suite.wait_for(lambda s: s["run"]["engine"] is None, 60.0, "the run has ended by itself")
    assert "until_return" in suite.status()["run"]["outcome"]


def played(suite: Suite) -> float:
    """Mean return of the best checkpoint, by `apex eval`."""
    done = suite.apex("eval", "--episodes", "5", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert len(result["returns"]) == 5
    return float(result["mean_return"])


@LEARN_TIMEOUT
@pytest.mark.learning
def test_cartpole_is_learned_with_central_inference(suite: Suite) -> None:
    learn(suite, "cartpole-seed", 400.0)
    assert played(suite) >= 200

    policy = apex.load_policy(suite.path)
    leaning_right = np.array([0.0, 0.0, 0.15, 0.8], dtype=np.float32)
    assert policy.act(leaning_right) == 1
    assert policy.act(np.stack([leaning_right, -leaning_right])).tolist() == [1, 0]


@LEARN_TIMEOUT
def test_pendulum_is_learned_with_continuous_actions(suite: Suite) -> None:
    learn(suite, "pendulum-dpg", -200.0)
    assert played(suite) >= -400

    policy = apex.load_policy(suite.path)
    falling_left = np.array([0.95, 0.3, 1.0], dtype=np.float32)  # upright, and going on that way
    action = policy.act(np.stack([falling_left, falling_left * [1, -1, -1]]))
    assert action.shape == (2, 1) and action.dtype == np.float32
    assert action[0, 0] < -0.5 and action[1, 0] > 0.5


@LEARN_TIMEOUT
@pytest.mark.learning
@pytest.mark.parametrize(
    ("preset", "mean_return", "settings"),
    [
        ("cartpole", 400.0, ()),
        ("cartpole-impala", 400.0, ()),
        ("cartpole-impala", 400.0, ("--set", "algorithm.lstm=64")),
        ("cartpole-impala", 400.0, ("--set", "actor.inference=central")),
        ("cartpole-r2d2", 300.0, ()),
        ("cartpole-r2d2", 300.0, ("--set", "actor.inference=central")),
        ("pendulum-dpg", -200.0, ("--set", "actor.inference=central")),
    ],
)
def test_preset_is_learned_to_its_mean_return(
    suite: Suite, preset: str, mean_return: float, settings
) -> None:
    learn(suite, preset, mean_return, *settings)
    assert played(suite) >= mean_return - 200


@LEARN_TIMEOUT
@pytest.mark.learning
def test_munchausen_example_learns_cartpole_with_central_inference(suite: Suite) -> None:
    learn_with(
        suite, 400.0,
        "--algorithm", f"{ROOT}/examples/munchausen.py:Munchausen", "--env", "CartPole-v1",
        "--set", "replay.samples_per_insert=16", "--set", "learner.batch_size=64",
        "--set", "evaluator.period_s=4", "--set", "evaluator.max_share=0.25",
        "--set", "evaluator.num_envs=20", "--set", "actor.inference=central", "--actors", "2",
    )  # fmt: skip
    assert played(suite) >= 200
    assert apex.load_policy(suite.path).act([0.0, 0.0, 0.15, 0.8]) == 1


@LEARN_TIMEOUT
@pytest.mark.learning
@pytest.mark.parametrize(("preset", "mean_return"), [("cartpole-impala", 300.0)])
def test_serial_run_learns_cartpole(suite: Suite, preset: str, mean_return: float):
    done = suite.apex(
        "run", "--serial", "--preset", preset, "--seed", "1", "--until-return", str(mean_return),
        "--set", "evaluator.period_s=1", "--set", "run.max_hours=0.08", timeout_s=LEARN_S,
    )  # fmt: skip
    assert done.returncode == 0 and "until_return" in done.stderr, done.stderr
    assert played(suite) >= mean_return / 2


def test_pong_runs_end_to_end_from_pixels(suite: Suite) -> None:
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
