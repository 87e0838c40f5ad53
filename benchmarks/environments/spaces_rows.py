"""Rows of the table of spaces: which environment, with which settings, and how it is trained."""

from __future__ import annotations

from typing import NamedTuple

from benchmarks.provenance import ROOT

FILE = ROOT / "benchmarks" / "environments" / "signals.py"
SIGNALS, LANES = f"{FILE}:Signals", f"{ROOT}/examples/lanes.py:Lanes"
IMAGES = ("algorithm.conv=[[8, 3, 2]]",)


class Space(NamedTuple):
    """One row: an environment or a space."""

    name: str
    env: str
    settings: tuple[str, ...] = ()
    score: float = 5.0
    """Mean return from which it counts as learned; the best one is 8, if not said otherwise."""
    long: bool = False
    """Whether it trains longer, as its episodes are longer."""


def signals(name: str, *settings: str, score: float = 5.0) -> Space:
    """A row of `Signals`; settings without a dot are keyword arguments of the environment."""
    full = tuple(one if "." in one.split("=")[0] else f"env.kwargs.{one}" for one in settings)
    return Space(name, SIGNALS, full, score)


SPACES = (
    Space("vector (CartPole-v1)", "CartPole-v1", (), 60.0, long=True),
    signals("image, two frames stacked", "observation=film", "env.frame_stack=2", *IMAGES),
    signals("RGB image, channels last", "observation=colours", *IMAGES),
    Space("Dict with a mask (Lanes)", LANES, IMAGES),
    Space("MultiDiscrete actions (Lanes)", LANES, (*IMAGES, "env.kwargs.actions=several")),
    Space("Dict, continuous action (Lanes)", LANES, (*IMAGES, "env.kwargs.actions=continuous")),
    signals("nested Dict and Tuple, two images", "observation=nested", *IMAGES),
    signals("Discrete observation"),
    signals("MultiDiscrete observation", "observation=numbers"),
    signals("MultiBinary observation", "observation=bits"),
    signals("mask from info", "masked=true"),
    signals("MultiBinary actions", "actions=several"),
    signals("Box actions, odd bounds", "actions=odd", score=4.0),
    signals("half-open Box actions", "actions=half_open", "env.action_limit=4"),
    signals("half-open Box actions, no limit", "actions=half_open"),
    signals("Text observation", "observation=text"),
    signals("Text in a Dict", "observation=text_in_dict"),
    Space("vector environment of its own", f"{FILE}:make_vector"),
    signals("async_envs", "actor.async_envs=true"),
)

PRESETS = {
    "apex_dqn": "cartpole",
    "r2d2": "cartpole-r2d2",
    "impala": "cartpole-impala",
    "apex_dpg": "pendulum-dpg",
}
"""Preset that an algorithm's settings begin with."""
TRAINING = {
    "apex_dqn": (
        "replay.min_size=500", "run.max_env_steps=6000", "algorithm.learning_rate=2e-3",
        "algorithm.target_update_period=50",
    ),
    "r2d2": (
        "replay.min_size=32", "run.max_env_steps=6000", "algorithm.learning_rate=3e-3",
        "algorithm.burn_in=0", "algorithm.unroll_length=8", "algorithm.overlap=4",
        "algorithm.n_step=1", "algorithm.lstm=16", "algorithm.target_update_period=30",
    ),
    "impala": ("run.max_env_steps=25000", "algorithm.learning_rate=3e-3"),
    "apex_dpg": (
        "replay.min_size=500", "run.max_env_steps=6000", "replay.samples_per_insert=16",
        "algorithm.n_step=1", "algorithm.learning_rate=3e-3", "algorithm.noise=1.0",
        "algorithm.actor_learning_rate=3e-3", "algorithm.smallest_noise=0.2",
        "algorithm.target_update_period=20", "algorithm.actor_hidden=[64]",
        "algorithm.critic_hidden=[64, 64]",
    ),
}  # fmt: skip
"""Settings of a short training; those of tests/suite/test_any_environment.py."""
LONG = {"apex_dqn": ("run.max_env_steps=12000",), "r2d2": ("run.max_env_steps=12000",),
        "impala": ("run.max_env_steps=40000",), "apex_dpg": ()}  # fmt: skip
DAEMONS = (
    "run.max_env_steps=0", "actor.count=1", "actor.num_envs=4", "replay.min_size=64",
    "evaluator.num_envs=2", "evaluator.episodes=2", "evaluator.period_s=1",
    "evaluator.max_share=1", "learner.checkpoint_period_s=3600",
)  # fmt: skip
"""Settings of a run that need not learn: it evaluates at once."""
QUIET = ("evaluator.enabled=false", "learner.checkpoint_period_s=3600")
"""Settings of a serial run, which is evaluated at its end."""


def settings(space: Space, algorithm: str, mode: str, seed: int) -> list[str]:
    """The settings of a cell, as of `--set`."""
    discount = 0.0 if algorithm == "apex_dpg" else 0.5
    found = [f"env.id={space.env}", f"run.seed={seed}", *TRAINING[algorithm]]
    found += LONG[algorithm] if space.long else [f"algorithm.discount={discount}"]
    found += QUIET if mode == "serial" else DAEMONS
    return [*found, *(["actor.inference=central"] if mode == "central" else []), *space.settings]
