"""Make the environments that a configuration names."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import gymnasium as gym
from gymnasium.vector import VectorEnv

from apex import plugins
from apex.config.sections import Config, EnvConfig
from apex.envs import sets
from apex.envs.activity import Activity
from apex.envs.atari import make_atari
from apex.envs.atari_games import PREFIX, refuse_other_ids
from apex.envs.base import PICTURES, Environments
from apex.envs.env_checks import Checked
from apex.envs.own_vector import make_own_vector, registered_vector, vector_factory
from apex.envs.spaces import FLATTENED
from apex.envs.vector import SerialVectorEnv, info_keys
from apex.errors import ApexError, ConfigError, EnvError
from apex.plugins import FACTORY

EnvFactory = Callable[..., Any]
"""A function that makes one environment and is called once for each; or, if it takes `num_envs`,
one that makes a vector environment."""


def make_environments(
    config: EnvConfig,
    num_envs: int,
    factory: EnvFactory | None = None,
    *,
    render: bool = False,
    activity: Activity | None = None,
) -> Environments:
    """Make `num_envs` environments.

    Args:
        config: section with the environment's id: `ALE/Name-v5`, a gymnasium id, `module:Id` or
            `path/to/file.py:Id`.
        num_envs: number of environments that are stepped together.
        factory: makes one environment, or a vector of them; replaces the id.
        render: whether `Environments.render` will be called.
        activity: notes each call into an environment; None: calls are not noted.

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
        if factory is None and config.id.startswith(PREFIX):
            return make_atari(config, num_envs, render=render, activity=activity)
        kwargs = config.kwargs | ({"render_mode": "rgb_array"} if render else {})
        make = factory or _factory(sets.resolve(config.id), kwargs, config.max_episode_steps)
        return _environments(_vector(make, config, num_envs, activity), config, activity)
    except ApexError:
        raise
    except plugins.RAISED as error:
        remedy = _remedy(error, config, render, factory is not None)
        raise EnvError(
            f"env.id = '{config.id}': making it {plugins.describe_error(error, remedy)}"
        ) from error


def _environments(
    vector: VectorEnv[Any, Any, Any], config: EnvConfig, activity: Activity | None
) -> Environments:
    """The environments of a vector, which is closed if its spaces cannot be used."""
    try:
        return Environments(
            vector,
            plugins.short(config.id),
            config.frame_stack,
            config.life_loss_ends,
            masked=bool(config.action_masks),
            channels=config.image_channels,
            action_limit=config.action_limit,
            activity=activity,
            metrics=config.metrics,
        )
    except BaseException:
        with suppress(*plugins.RAISED):
            vector.close()
        raise


def _vector(
    make: EnvFactory, config: EnvConfig, num_envs: int, activity: Activity | None
) -> VectorEnv[Any, Any, Any]:
    """A vector of the environments that `make` makes, one at a time or all at once."""
    env_id, limit = plugins.short(config.id), config.max_episode_steps
    makes = [make] * num_envs
    if (many := vector_factory(make)) is not None:
        made = make_own_vector(many, num_envs, env_id)
        if isinstance(made, VectorEnv):
            if limit:
                made.close()
                raise EnvError(
                    f"{env_id}: env.max_episode_steps = {limit}: a vector environment has its own "
                    "time limit; let its factory take one, and pass it with env.kwargs"
                )
            return made
        makes = [partial(iter(made).__next__)] * num_envs
    return SerialVectorEnv(
        [partial(_checked, one, limit) for one in makes], info_keys(config), activity
    )


def evaluation_factory(config: Config, factory: EnvFactory | None) -> EnvFactory | None:
    """The factory for `make_environments(config.evaluation_env, …)`.

    Args:
        config: the run's configuration.
        factory: a script's factory, which an `id` in `[evaluator.env]` replaces.
    """
    return None if "id" in config.evaluator.env else factory


def _remedy(error: BaseException, config: EnvConfig, render: bool, from_script: bool) -> str:
    """What to do about an error that is raised when an environment is made."""
    if render and "render_mode" in str(error):
        return PICTURES
    if not isinstance(error, TypeError):
        return ""
    if from_script:
        return "make_env is called without arguments: give each a default, or bind it"
    if "unexpected keyword" in str(error):
        return f"env.kwargs is {config.kwargs}: remove or rename what it does not take"
    missing = re.findall(r"'(\w+)'", str(error)) or ["name"]
    example = ", ".join(f"{name} = …" for name in missing)
    return f"give it arguments by env.kwargs: --set 'env.kwargs={{{example}}}'"


def _factory(env_id: str, kwargs: dict[str, Any], max_episode_steps: int) -> EnvFactory:
    """A function that makes an environment by its gymnasium id, or from a user's module.

    Raises:
        EnvError: the module cannot be imported, or has no environment of that name.
    """
    refuse_other_ids(env_id)
    if not plugins.is_reference(env_id):
        return _registered(env_id, kwargs, max_episode_steps)
    try:
        module, name = plugins.load(env_id, "env.id")
    except ConfigError as error:
        raise EnvError(str(error)) from None
    kind = getattr(module, name, None)
    if callable(kind):
        return partial(kind, **kwargs)
    try:
        gym.spec(name)
    except gym.error.Error as error:
        raise EnvError(
            f"env.id = '{plugins.short(env_id)}': the module neither defines '{name}' nor "
            f"registers it with gymnasium ({error})"
        ) from None
    refuse_other_ids(name)
    return _registered(name, kwargs, max_episode_steps)


def _registered(env_id: str, kwargs: dict[str, Any], max_episode_steps: int) -> EnvFactory:
    """A function that makes an environment of gymnasium's registry."""
    if max_episode_steps and "max_episode_steps" in kwargs:
        raise EnvError(
            "env.max_episode_steps and env.kwargs.max_episode_steps: expected one of them, got both"
        )
    if (vector := registered_vector(env_id, kwargs)) is not None:
        return vector
    if max_episode_steps:
        kwargs = kwargs | {"max_episode_steps": max_episode_steps}
    return partial(gym.make, env_id, **kwargs)


def _checked(make: EnvFactory, max_episode_steps: int) -> gym.Env[Any, Any]:
    """Make an environment whose values are checked, and whose discrete observations are one-hot."""
    env = make()
    if not isinstance(env, gym.Env):
        raise EnvError(
            f"expected a gymnasium.Env, got a {type(env).__name__}; derive the class from "
            "gymnasium.Env, or return an instance of one from the function"
        )
    is_discrete = isinstance(env.observation_space, FLATTENED)
    env = Checked(env)
    if max_episode_steps:
        env = gym.wrappers.TimeLimit(env, max_episode_steps)
    return gym.wrappers.FlattenObservation(env) if is_discrete else env
