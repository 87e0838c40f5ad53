"""Dict observations and action masks are learned by every algorithm that can take them."""

from __future__ import annotations

from pathlib import Path

import pytest

import apex
from apex.launch.prepare import prepare_run, preset_config
from apex.launch.single_process import SerialRun
from tests.support.paths import ROOT
from tests.support.suite import Suite

LANES = f"{ROOT}/examples/lanes.py:Lanes"
COMMON = (
    f"env.id={LANES}", "algorithm.conv=[[8, 3, 2]]", "algorithm.discount=0.5",
    "evaluator.enabled=false", "learner.checkpoint_period_s=3600",
)  # fmt: skip
CASES = {
    "cartpole": (
        "discrete",
        ("replay.min_size=500", "run.max_env_steps=6000", "algorithm.learning_rate=2e-3",
         "algorithm.target_update_period=50"),
    ),
    "cartpole-r2d2": (
        "discrete",
        ("replay.min_size=32", "run.max_env_steps=6000", "algorithm.learning_rate=3e-3",
         "algorithm.burn_in=0", "algorithm.unroll_length=8", "algorithm.overlap=4",
         "algorithm.n_step=1", "algorithm.lstm=16", "algorithm.target_update_period=30"),
    ),
    "cartpole-impala": (
        "discrete", ("run.max_env_steps=25000", "algorithm.learning_rate=3e-3")
    ),
    "impala, several integers": (
        "several", ("run.max_env_steps=25000", "algorithm.learning_rate=3e-3")
    ),
    "pendulum-dpg": (
        "continuous",
        ("replay.min_size=500", "run.max_env_steps=6000", "replay.samples_per_insert=16",
         "algorithm.n_step=1", "algorithm.discount=0", "algorithm.learning_rate=3e-3",
         "algorithm.actor_learning_rate=3e-3", "algorithm.noise=1.0",
         "algorithm.smallest_noise=0.2", "algorithm.target_update_period=20",
         "algorithm.actor_hidden=[64]", "algorithm.critic_hidden=[64, 64]"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_lanes_are_learned(case: str, tmp_path: Path) -> None:
    """The best return is 8; random actions reach about 3, continuous ones 1.5."""
    actions, settings = CASES[case]
    preset = "cartpole-impala" if "," in case else case
    everything = [*COMMON, f"env.kwargs.actions={actions}", *settings]
    SerialRun(prepare_run(tmp_path / "run", preset_config(preset, everything))).run()
    returns = apex.load_policy(tmp_path / "run").play(20, seed=3)
    assert sum(returns) / len(returns) > 5.0


def test_lanes_run_with_central_inference_and_an_evaluator(suite: Suite) -> None:
    """The environment raises where a closed lane is taken, so no fault means no masked action."""
    suite.start(
        "--preset", "cartpole-seed", "--actors", "2", "--env", LANES,
        *(word for s in COMMON[1:3] for word in ("--set", s)),
        "--set", "replay.min_size=200", "--set", "evaluator.episodes=4",
        "--set", "evaluator.num_envs=2", "--set", "evaluator.period_s=1",
    )  # fmt: skip
    status = suite.wait_for(
        lambda s: (
            (s["evaluator"]["best_mean_return"] or 0) > 4 and s["learner"]["learner_step"] > 50
        ),
        60.0,
        "an evaluation and 50 updates",
    )
    assert status["run"]["health"] == "healthy"
    assert all(actor["env_faults"] == 0 for actor in status["actors"])
    assert suite.apex("eval", "--episodes", "4").returncode == 0
