"""Makes the environments that a configuration names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from apex.config import EnvConfig
from apex.envs.atari import make_atari
from apex.envs.base import Environments
from apex.errors import ApexError, EnvError
from apex.types import FACTORY

EnvFactory = Callable[[], gym.Env[Any, Any]]
"""A user's own environment: called once for each environment."""


def make_environments(
    config: EnvConfig, num_envs: int, factory: EnvFactory | None = None, *, render: bool = False
) -> Environments:
    """Make `num_envs` environments.

    Args:
        config: names the environment by `ALE/Name-v5`, a gymnasium id or `module:Id`.
        num_envs: how many are stepped together.
        factory: makes one environment, instead of the id.
        render: whether `Environments.render` will be called.

    Raises:
        EnvError: it cannot be made, or has spaces that apex cannot use.
    """
    if factory is None and config.id.startswith(FACTORY):
        raise EnvError(
            f"{config.id} came from a script by apex.launch.run(make_env=…) and is not kept; "
            "only that run's own daemons have it. To play it elsewhere, install a module that "
            'registers it and set env.id = "module:Id"'
        )
    kwargs = config.kwargs | ({"render_mode": "rgb_array"} if render else {})
    make = factory or (lambda: gym.make(config.id, **kwargs))
    try:
        if factory is None and config.id.startswith("ALE/"):
            return make_atari(config, num_envs, render=render)
        vector = SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)
        return Environments(vector, config.id, config.frame_stack, config.life_loss_ends)
    except ApexError:
        raise
    except Exception as error:
        raise EnvError(f"env.id = '{config.id}': {type(error).__name__}: {error}") from error
