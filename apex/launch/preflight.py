"""Try a new run's environment and algorithm in this process, before anything starts.

What every actor or the learner would fail at is one error here, in one line.
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
from apex.data.schema import Array, Schema
from apex.envs.recreation import close
from apex.envs.registry import make_environments
from apex.envs.spec import EnvSpec
from apex.errors import ApexError, ConfigError, EnvError, EnvFaultError
from apex.plugins import NONE, Extensions

log = logging.getLogger("apex.launch.preflight")

STEPS = 3
LOOK_AT_THE_POLICY = (
    "look at what its policy and exploration give: arrays with a row for each environment, actions "
    "as the environment takes them"
)


class Trial(NamedTuple):
    """A configuration whose environment and algorithm were tried."""

    config: Config
    """With absolute paths of the user's own files, and all keys of the algorithm."""
    spec: EnvSpec
    schema: Schema
    """Of the items that the algorithm makes."""
    algorithm: Algorithm


def try_config(config: Config, extensions: Extensions = NONE, *, steps: int = STEPS) -> Trial:
    """Try the environment and the algorithm, and type the algorithm's section.

    Args:
        config: checked.
        extensions: what a script brought.
        steps: of the environment that are played.

    Raises:
        ApexError: the environment or the algorithm cannot be used.
    """
    config = plugins.with_absolute_paths(config)
    spec, observation = try_environment(config.env, extensions, steps=steps)
    algorithm = make_algorithm(config.algorithm, spec, extensions.algorithm)
    try_algorithm(algorithm, observation)
    section = msgspec.to_builtins(algorithm.config)
    whole = msgspec.structs.replace(config, algorithm=section)
    return Trial(whole, spec, algorithm.schema(), algorithm)


def try_environment(
    config: EnvConfig, extensions: Extensions, *, steps: int = STEPS
) -> tuple[EnvSpec, Array]:
    """Make the environment and play some random steps; its spec and last observation, `[1, …]`.

    Raises:
        EnvError: it cannot be made, or failed.
    """
    default = EnvConfig(id=config.id)
    made = [name for name in ATARI_FIELDS if getattr(config, name) != getattr(default, name)]
    if made and not config.id.startswith("ALE/"):
        log.warning(
            "%s: read for Atari games (ALE/...) only, and ignored here; change the environment "
            "itself, by wrappers or env.kwargs",
            ", ".join(f"env.{name}" for name in made),
        )
    environments = make_environments(config, 1, extensions.make_env)
    spec, rng = environments.spec, np.random.default_rng(0)
    observation = np.zeros((1, *spec.observation_shape), spec.observation_dtype)
    try:
        if steps:
            observation = environments.reset(seed=0)
        for _ in range(steps):
            observation = environments.step(spec.random_actions(1, rng)).observations
    except EnvFaultError as error:
        raise EnvError(str(error)) from None
    finally:
        close(environments)
    if spec.observation_dtype == "float32" and len(spec.observation_shape) == 3:
        log.warning(
            "%s: observations %s of floats are taken as vectors; if they are images, return uint8",
            spec.env_id, spec.observation_shape,
        )  # fmt: skip
    return spec, observation


def try_algorithm(algorithm: Algorithm, observation: Array) -> None:
    """Let the algorithm's policy decide, greedily and exploring, and make its learner.

    Raises:
        ConfigError: one of them cannot be made, or the policy does not decide on actions.
    """
    name, spec = plugins.short(algorithm.config.name), algorithm.spec
    try:
        decisions = _decisions(algorithm, np.concatenate([observation, observation]))
        learner = algorithm.learner(torch.device("cpu"))
    except ApexError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise ConfigError(
            f"algorithm '{name}' on {spec.env_id}, observations {spec.policy_shape}: it "
            f"{plugins.describe_error(error, LOOK_AT_THE_POLICY)}"
        ) from error
    expected = spec.no_actions(2)
    for how, actions in decisions.items():
        is_like = getattr(actions, "dtype", None) == expected.dtype
        if not is_like or actions.shape != expected.shape or spec.bad_actions(actions).any():
            found = f"{getattr(actions, 'dtype', type(actions).__name__)} {np.shape(actions)}"
            raise ConfigError(
                f"algorithm '{name}': its policy, {how}, decided on actions {found} {actions}, "
                f"expected a NumPy array {expected.dtype} {expected.shape}: {spec.actions_text} of "
                "two environments"
            )
    if not isinstance(learner, Learner):
        raise ConfigError(
            f"algorithm '{name}': expected learner() to give an apex.api.Learner, got a "
            f"{type(learner).__name__}"
        )


def _decisions(algorithm: Algorithm, observations: Array) -> dict[str, Any]:
    """What the policy does in two environments, by how it decides."""
    policy = algorithm.policy()
    agent = Agent(algorithm.spec, 2, policy.core_size, clip_rewards=False)
    agent.begin(observations)
    inputs = Inputs.joined([agent.inputs])
    exploration = algorithm.exploration(LadderPlace(np.arange(2.0), 2, [(0,), (1,)]))
    return {
        "greedy": policy.act(inputs, None).actions,
        "exploring": policy.act(inputs, exploration).actions,
    }
