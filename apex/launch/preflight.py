"""Try a new run's environment and algorithm in this process, before any daemon starts.

A mistake that every actor or the learner would fail at becomes a single one-line error.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from apex import plugins
from apex.acting.agent import Agent
from apex.acting.decisions import Inputs
from apex.acting.exploration import LadderPlace
from apex.acting.observation_columns import ObservationColumns
from apex.algos.base import Algorithm, Learner
from apex.algos.registry import make_algorithm
from apex.config.sections import ATARI_FIELDS, Config, EnvConfig
from apex.data.chunks import LARGE_REWARD, LARGE_REWARDS_REMEDY
from apex.data.observations import Observations, action_mask, concatenate, map_arrays
from apex.data.schema import COMPRESSED_SHARE, Schema
from apex.envs.activity import Activity, announced
from apex.envs.base import Environments
from apex.envs.recreation import close
from apex.envs.registry import evaluation_factory, make_environments
from apex.envs.spec import EnvSpec
from apex.errors import ApexError, ConfigError, EnvError, EnvFaultError
from apex.execution.settings import check_settings
from apex.host import process_tuning
from apex.plugins import NONE, Extensions

log = logging.getLogger("apex.launch.preflight")

STEPS = 3
"""Steps of a trial. It goes on to the ends of episodes that come early: those are tried too."""
MORE_STEPS, MORE_S = 50, 1.0
"""Steps and seconds after which a trial no longer waits for the end of an episode."""
CHECK_THE_POLICY = (
    "check what its policy and exploration return: arrays with a row for each environment, and "
    "actions in the environment's action space"
)


class Trial(NamedTuple):
    """A tried configuration, with its environment's spec and its algorithm."""

    config: Config
    """The configuration with absolute paths of the user's files and all keys of the algorithm."""
    spec: EnvSpec
    schema: Schema
    """Schema of the items that the algorithm makes."""
    algorithm: Algorithm
    item_bytes: float
    """Estimated bytes of one item in the table (`item_bytes`)."""


def try_config(config: Config, extensions: Extensions = NONE, *, steps: int = STEPS) -> Trial:
    """Try the environment and the algorithm, and type the algorithm's section.

    Args:
        config: a checked configuration.
        extensions: a script's own environment and algorithm.
        steps: number of steps to take in the environment.

    Raises:
        ApexError: the environment or the algorithm cannot be used.
    """
    config = plugins.with_absolute_paths(config)
    num_envs, asked_masks = envs_to_try(config), config.env.action_masks
    env, spec, observation = try_environment(config.env, extensions, num_envs=num_envs, steps=steps)
    config = msgspec.structs.replace(config, env=env)
    try_evaluation_environment(config, spec, extensions, steps=steps)
    algorithm = make_algorithm(config.algorithm, spec, extensions.algorithm, env=config.env)
    check_settings(config.learner, process_tuning.pick_device(config.learner.device))
    try:
        try_algorithm(algorithm, observation)
    except ConfigError as error:
        if asked_masks is None and config.env.action_masks:
            raise ConfigError(
                f"{error}. info['action_mask'] was found, so the observation is a dictionary; for "
                "an algorithm that knows no masks set env.action_masks to false"
            ) from None
        raise
    section = msgspec.to_builtins(algorithm.config)
    whole = msgspec.structs.replace(config, algorithm=section)
    estimate = item_bytes(algorithm, observation)
    return Trial(whole, spec, algorithm.schema(), algorithm, estimate)


def item_bytes(algorithm: Algorithm, observation: Observations) -> float:
    """Estimated bytes of one item in the table.

    The frames of games compress well, those of a camera hardly: the share is that of the observed
    frame, but at least the one measured in games, since a first frame may be empty.

    Args:
        algorithm: makes the items.
        observation: of one environment, `[1, ...]`.
    """
    schema, share = algorithm.schema(), COMPRESSED_SHARE
    if schema.frames is not None:
        compressed = len(ObservationColumns(algorithm.spec).frame(observation, 0))
        share = max(share, compressed / schema.frames.frame_bytes)
    return schema.estimated_bytes(algorithm.new_frames(), share)


def envs_to_try(config: Config) -> int:
    """Number of environments to try together: two, if an actor's process has several.

    One that can exist only once in a process, such as a simulator with global state, is usable
    with `actor.async_envs`.
    """
    return 1 if config.actor.async_envs else min(2, config.actor.num_envs)


def try_evaluation_environment(
    config: Config, spec: EnvSpec, extensions: Extensions, *, steps: int = STEPS
) -> None:
    """Try the environment of `[evaluator.env]`, if that section has keys.

    Raises:
        ConfigError: its observations or actions differ from those of training.
        EnvError: it cannot be made, or failed.
    """
    given = config.evaluator.env
    if not given:
        return
    if extensions.make_env is not None and "kwargs" in given and "id" not in given:
        raise ConfigError(
            "evaluator.env.kwargs: the script's make_env is called without them; name an "
            "environment for evaluations with evaluator.env.id"
        )
    factory = evaluation_factory(config, extensions.make_env)
    try:
        _, found, _ = try_environment(
            config.evaluation_env,
            Extensions(factory),
            num_envs=min(2, config.evaluator.num_envs),
            steps=steps,
        )
    except EnvError as error:
        raise EnvError(f"evaluator.env: {error}") from None
    if differing := found.differences(spec):
        raise ConfigError(
            f"evaluator.env: {found.env_id} must have the observations and actions of training "
            f"({spec.env_id}), but has {', '.join(differing)}; change it, or the keys of "
            "[evaluator.env]"
        )


def try_environment(
    config: EnvConfig,
    extensions: Extensions,
    *,
    num_envs: int = 2,
    steps: int = STEPS,
) -> tuple[EnvConfig, EnvSpec, Observations]:
    """Make environments and take random steps.

    Several are stepped together, as in a run: what works alone may fail beside a second one.

    Returns:
        The section with what was found out (`env.action_masks`), the spec, and the last
        observation of one environment, `[1, ...]`.

    Raises:
        EnvError: the environment cannot be made, or failed.
    """
    activity = Activity()
    with announced(activity, each_call=False):
        make = partial(
            make_environments, num_envs=num_envs, factory=extensions.make_env, activity=activity
        )
        spec, observation = _try_steps(config, make, steps)
        if observation is None:
            log.info("%s: info['action_mask'] says which actions are allowed", spec.env_id)
            config = msgspec.structs.replace(config, action_masks=True)
            spec, observation = _try_steps(config, make, steps)
        elif config.action_masks is None:
            config = msgspec.structs.replace(config, action_masks=False)
    assert observation is not None
    _warn_of_ignored_keys(config)
    for part in spec.arrays:
        if part.dtype == "float32" and len(part.shape) == 3:
            log.warning(
                "%s: float observations (%s) are treated as vectors; if they are images, return "
                "uint8",
                spec.env_id, part.text,
            )  # fmt: skip
    return config, spec, observation


def _try_steps(
    config: EnvConfig, make: Callable[[EnvConfig], Environments], steps: int
) -> tuple[EnvSpec, Observations | None]:
    """The spec and an observation `[1, …]`; None if `info` has masks and nothing says to use them.

    Raises:
        EnvError: an environment cannot be made, or failed.
    """
    environments = make(config)
    spec = environments.spec
    try:
        if not steps and config.action_masks is not None:
            return spec, spec.zero_observations(1)
        observations = environments.reset(seed=0)
        is_discrete = spec.action_kind == "discrete"
        if config.action_masks is None and is_discrete and environments.offers_action_mask:
            return spec, None
        observations, largest = play_randomly(environments, observations, steps)
        if largest >= LARGE_REWARD and not config.clip_rewards:
            log.warning(
                "%s: rewards reach %g in the first steps: %s",
                spec.env_id, largest, LARGE_REWARDS_REMEDY,
            )  # fmt: skip
    except EnvFaultError as error:
        raise EnvError(str(error)) from None
    finally:
        close(environments)
    return spec, map_arrays(lambda array: array[:1], observations)


def _warn_of_ignored_keys(config: EnvConfig) -> None:
    """Warn of Atari's settings on an environment that is not one of ALE's."""
    default = EnvConfig(id=config.id)
    ignored = [name for name in ATARI_FIELDS if getattr(config, name) != getattr(default, name)]
    if ignored and not config.id.startswith("ALE/"):
        log.warning(
            "%s: ignored, as these keys apply to Atari games (ALE/...) only; change the "
            "environment itself, with wrappers or env.kwargs",
            ", ".join(f"env.{name}" for name in ignored),
        )


def play_randomly(
    environments: Environments,
    observations: Observations,
    steps: int,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[Observations, float]:
    """Take random steps; return the last observations `[E, …]` and the largest reward's magnitude.

    Args:
        environments: reset by the caller.
        observations: of the reset.
        steps: smallest number of steps. If it is not 0, up to `MORE_STEPS` are taken within
            `MORE_S` until an episode has ended and the next one begun, where environments often
            fail.
        clock: monotonic seconds.

    Raises:
        EnvFaultError: an environment failed.
    """
    spec, rng, until = environments.spec, np.random.default_rng(0), clock() + MORE_S
    ended, begun_again, taken, largest = False, steps == 0, 0, 0.0
    while taken < steps or not (begun_again or taken >= MORE_STEPS or clock() >= until):
        allowed = action_mask(observations)
        result = environments.step(spec.random_actions(environments.num_envs, rng, allowed))
        observations, begun_again = result.observations, begun_again or ended
        ended = ended or bool((result.terminated | result.truncated).any())
        largest = max(largest, float(np.abs(result.rewards).max()))
        taken += 1
    return observations, largest


def try_algorithm(algorithm: Algorithm, observation: Observations) -> None:
    """Compute actions with the algorithm's policy, greedy and exploring, and make its learner.

    Raises:
        ConfigError: one of them cannot be made, or the policy does not return valid actions.
    """
    name, spec = plugins.short(algorithm.config.name), algorithm.spec
    try:
        decisions = _decisions(algorithm, concatenate([observation, observation]))
        learner = algorithm.learner(torch.device("cpu"))
    except ApexError:
        raise
    except plugins.RAISED as error:
        raise ConfigError(
            f"algorithm '{name}' on {spec.env_id}, observations {spec.observations_text}: it "
            f"{plugins.describe_error(error, CHECK_THE_POLICY)}"
        ) from error
    expected = spec.no_actions(2)
    for how, actions in decisions.items():
        is_like = getattr(actions, "dtype", None) == expected.dtype
        if not is_like or actions.shape != expected.shape or spec.bad_actions(actions).any():
            found = f"{getattr(actions, 'dtype', type(actions).__name__)} {np.shape(actions)}"
            raise ConfigError(
                f"algorithm '{name}': expected its policy, {how}, to return a NumPy array "
                f"{expected.dtype} {expected.shape}: {spec.actions_text} for two environments; got "
                f"{found} {actions}"
            )
    if not isinstance(learner, Learner):
        raise ConfigError(
            f"algorithm '{name}': expected learner() to return an apex.api.Learner, got a "
            f"{type(learner).__name__}"
        )


def _decisions(algorithm: Algorithm, observations: Observations) -> dict[str, Any]:
    """Actions of the policy in two environments, greedy and exploring."""
    policy = algorithm.policy()
    agent = Agent(algorithm.spec, 2, policy.core_size, clip_rewards=False)
    agent.begin(observations)
    inputs = Inputs.joined([agent.inputs])
    exploration = algorithm.exploration(LadderPlace(np.arange(2.0), 2, [(0,), (1,)]))
    return {
        "greedy": policy.act(inputs, None).actions,
        "exploring": policy.act(inputs, exploration).actions,
    }
