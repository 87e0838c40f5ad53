"""Try a new run's environment and algorithm in this process, before any daemon starts.

A mistake that every actor or the learner would fail at becomes a single one-line error.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch

from apex import plugins
from apex.acting.agent import Agent
from apex.acting.decisions import Inputs
from apex.acting.exploration import LadderPlace
from apex.algos.base import Algorithm, Learner
from apex.algos.registry import make_algorithm
from apex.config.sections import ATARI_FIELDS, Config, EnvConfig
from apex.data.observations import Observations, action_mask, concatenate
from apex.data.schema import Schema
from apex.envs.recreation import close
from apex.envs.registry import make_environments
from apex.envs.spec import EnvSpec
from apex.errors import ApexError, ConfigError, EnvError, EnvFaultError
from apex.execution.settings import check_settings
from apex.host import process_tuning
from apex.plugins import NONE, Extensions

log = logging.getLogger("apex.launch.preflight")

STEPS = 3
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
    env, spec, observation = try_environment(config.env, extensions, steps=steps)
    algorithm = make_algorithm(config.algorithm, spec, extensions.algorithm)
    check_settings(config.learner, process_tuning.pick_device(config.learner.device))
    try_algorithm(algorithm, observation)
    section = msgspec.to_builtins(algorithm.config)
    whole = msgspec.structs.replace(config, env=env, algorithm=section)
    return Trial(whole, spec, algorithm.schema(), algorithm)


def try_environment(
    config: EnvConfig, extensions: Extensions, *, steps: int = STEPS
) -> tuple[EnvConfig, EnvSpec, Observations]:
    """Make the environment and take random steps.

    Returns:
        The section with what was found out (`env.action_masks`), the spec, and the last
        observations, `[1, ...]`.

    Raises:
        EnvError: the environment cannot be made, or failed.
    """
    default = EnvConfig(id=config.id)
    ignored = [name for name in ATARI_FIELDS if getattr(config, name) != getattr(default, name)]
    if ignored and not config.id.startswith("ALE/"):
        log.warning(
            "%s: ignored, as these keys apply to Atari games (ALE/...) only; change the "
            "environment itself, with wrappers or env.kwargs",
            ", ".join(f"env.{name}" for name in ignored),
        )
    spec, observations, offers_mask = _random_steps(config, extensions, steps)
    if config.action_masks is None:
        masked = offers_mask and spec.action_kind == "discrete"
        config = msgspec.structs.replace(config, action_masks=masked)
        if masked:
            log.info("%s: info['action_mask'] says which actions are allowed", spec.env_id)
            spec, observations, _ = _random_steps(config, extensions, steps)
    for part in spec.arrays:
        if part.dtype == "float32" and len(part.shape) == 3:
            log.warning(
                "%s: float observations %s are treated as vectors; if they are images, return "
                "uint8",
                spec.env_id, part.text,
            )  # fmt: skip
    return config, spec, observations


def _random_steps(
    config: EnvConfig, extensions: Extensions, steps: int
) -> tuple[EnvSpec, Observations, bool]:
    """The spec, the last observations, and whether `info` has an action mask that is not used."""
    environments = make_environments(config, 1, extensions.make_env)
    spec, rng = environments.spec, np.random.default_rng(0)
    observations = spec.zero_observations(1)
    try:
        if steps or config.action_masks is None:
            observations = environments.reset(seed=0)
        for _ in range(steps):
            actions = spec.random_actions(1, rng, action_mask(observations))
            observations = environments.step(actions).observations
    except EnvFaultError as error:
        raise EnvError(str(error)) from None
    finally:
        close(environments)
    return spec, observations, environments.offers_action_mask


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
    except Exception as error:  # whatever the user's own code raises
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
