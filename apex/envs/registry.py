"""Make the environments that a configuration names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from apex import plugins
from apex.config.sections import EnvConfig
from apex.envs import sets
from apex.envs.atari import make_atari
from apex.envs.base import Environments
from apex.envs.env_checks import Checked
from apex.envs.spaces import FLATTENED
from apex.errors import ApexError, ConfigError, EnvError
from apex.plugins import FACTORY

EnvFactory = Callable[[], gym.Env[Any, Any]]
"""A function that makes one environment; called once for each."""


def make_environments(
    config: EnvConfig, num_envs: int, factory: EnvFactory | None = None, *, render: bool = False
) -> Environments:
    """Make `num_envs` environments.

    Args:
        config: section with the environment's id: `ALE/Name-v5`, a gymnasium id, `module:Id` or
            `path/to/file.py:Id`.
        num_envs: number of environments that are stepped together.
        factory: makes one environment; replaces the id.
        render: whether `Environments.render` will be called.

    Raises:
        EnvError: the environment cannot be made, or has spaces that apex cannot use.
    """
    if factory is None and config.id.startswith(FACTORY):
        raise EnvError(
            f"{config.id}: a script passed this environment to apex.launch.run(make_env=…). Only "
            "that run's own daemons have it. To use it elsewhere, put it into a file and start "
            'the run with env.id = "path/to/file.py:Name"'
        )
    try:
        if factory is None and config.id.startswith("ALE/"):
            return make_atari(config, num_envs, render=render)
        kwargs = config.kwargs | ({"render_mode": "rgb_array"} if render else {})
        make = factory or _factory(sets.resolve(config.id), kwargs)
        vector = SyncVectorEnv(
            [lambda: _checked(make())] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP
        )
        name = plugins.short(config.id)
        return Environments(
            vector,
            name,
            config.frame_stack,
            config.life_loss_ends,
            masked=bool(config.action_masks),
            channels=config.image_channels,
            action_limit=config.action_limit,
        )
    except ApexError:
        raise
    except Exception as error:
        remedy = "let it take render_mode=None, and let render() return pictures"
        if not (render and isinstance(error, TypeError)):
            remedy = ""
        raise EnvError(
            f"env.id = '{config.id}': making it {plugins.describe_error(error, remedy)}"
        ) from error


def _factory(env_id: str, kwargs: dict[str, Any]) -> EnvFactory:
    """A function that makes an environment by its gymnasium id, or from a user's module.

    Raises:
        EnvError: the module cannot be imported, or has no environment of that name.
    """
    if not plugins.is_reference(env_id):
        return lambda: gym.make(env_id, **kwargs)
    try:
        module, name = plugins.load(env_id, "env.id")
    except ConfigError as error:
        raise EnvError(str(error)) from None
    kind = getattr(module, name, None)
    if callable(kind):
        return lambda: kind(**kwargs)
    try:
        gym.spec(name)
    except gym.error.Error as error:
        raise EnvError(
            f"env.id = '{plugins.short(env_id)}': the module neither defines '{name}' nor "
            f"registers it with gymnasium ({error})"
        ) from None
    return lambda: gym.make(name, **kwargs)


def _checked(env: gym.Env[Any, Any]) -> gym.Env[Any, Any]:
    """Wrap an environment: check what it returns, and one-hot encode discrete observations."""
    if not isinstance(env, gym.Env):
        raise EnvError(
            f"expected a gymnasium.Env, got a {type(env).__name__}; derive the class from "
            "gymnasium.Env, or return an instance of one from the function"
        )
    is_discrete = isinstance(env.observation_space, FLATTENED)
    checked = Checked(env)
    return gym.wrappers.FlattenObservation(checked) if is_discrete else checked
