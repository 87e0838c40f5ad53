"""Prepared runs, and services of daemons that a test makes in its own process."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import gymnasium as gym
import numpy as np

from apex.daemons.service import Service
from apex.envs.registry import EnvFactory
from apex.launch.prepare import prepare_run, preset_config
from apex.plugins import Extensions
from apex.runs.directory import RunDirectory


class ThreeLives(gym.Env):
    """Three steps, each with `rewards[action]` and a lost life; the third ends the episode."""

    rewards = (5.0, 5.0)
    observation_space = gym.spaces.Box(-1, 1, (1,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {"lives": 3}

    def step(self, action):
        self.steps += 1
        ended = self.steps == 3
        return (
            np.zeros(1, np.float32), self.rewards[action], ended, False, {"lives": 3 - self.steps},
        )  # fmt: skip


def prepared(
    folder: Path,
    *settings: str,
    make_env: EnvFactory | None = None,
    preset: str = "cartpole",
) -> RunDirectory:
    """Prepare a run on the CPU, with its sockets in `folder`."""
    endpoints = folder / "endpoints.toml"
    endpoints.write_text(
        f'[replay]\ninsert = "ipc://{folder}/i"\nsample = "ipc://{folder}/s"\n'
        f'[learner]\nparams = "ipc://{folder}/p"\n'
        f'[inference]\nact = "ipc://{folder}/a"\n'
    )
    config = preset_config(preset, ["learner.device=cpu", *settings])
    return prepare_run(folder / "run", config, endpoints, Extensions(make_env))


@contextmanager
def service_of(run: RunDirectory, name: str) -> Iterator[Service]:
    """The service of one start of a daemon; its lock is released at the end of the block."""
    service = Service(run, name)
    try:
        yield service
    finally:
        service._lock.release()
