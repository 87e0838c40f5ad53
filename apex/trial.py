"""A new run's environment and algorithm, tried in this process before anything starts.

Whatever every actor and the learner would stumble over is told at once, in one line.
"""

from __future__ import annotations

import logging

import numpy as np
import torch

from apex import user_code
from apex.acting.agent import Agent, Inputs
from apex.algos.base import Algorithm, Learner
from apex.config import EnvConfig
from apex.env_spec import EnvSpec
from apex.envs.recreation import close
from apex.envs.registry import make_environments
from apex.errors import ApexError, ConfigError, EnvError, EnvFaultError
from apex.extensions import Extensions
from apex.types import Array

log = logging.getLogger("apex.trial")

STEPS = 3


def try_environment(
    config: EnvConfig, extensions: Extensions, *, steps: int = STEPS
) -> tuple[EnvSpec, Array]:
    """Make the environment and play some random steps; its spec and last observation, `[1, …]`.

    Raises:
        EnvError: it cannot be made, or failed.
    """
    environments = make_environments(config, 1, extensions.make_env)
    spec, rng = environments.spec, np.random.default_rng(0)
    observation = np.zeros((1, *spec.observation_shape), spec.observation_dtype)
    try:
        for step in range(steps):
            if step == 0:
                observation = environments.reset(seed=0)
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
    """Let the algorithm's policy decide once, and make its learner.

    Raises:
        ConfigError: one of them cannot be made, or the policy's decision is none.
    """
    name = user_code.short(algorithm.config.name)
    try:
        policy = algorithm.policy()
        agent = Agent(algorithm.spec, 1, policy.core_size)
        agent.begin(observation)
        actions = policy.act(_copied(agent.inputs), None).actions
        learner = algorithm.learner(torch.device("cpu"))
    except ApexError:
        raise
    except Exception as error:  # whatever the user's own code raises
        raise ConfigError(
            f"algorithm '{name}' on {algorithm.spec.env_id}, observations "
            f"{algorithm.spec.policy_shape}: it {user_code.told(error)}"
        ) from error
    expected = algorithm.spec.no_actions(1)
    if getattr(actions, "dtype", None) != expected.dtype or actions.shape != expected.shape:
        found = f"{getattr(actions, 'dtype', type(actions).__name__)} {np.shape(actions)}"
        raise ConfigError(
            f"algorithm '{name}': its policy decided on actions {found}, expected a NumPy array "
            f"{expected.dtype} {expected.shape}: {algorithm.spec.actions_text} of one environment"
        )
    if not isinstance(learner, Learner):
        raise ConfigError(
            f"algorithm '{name}': expected learner() to give an apex.algos.base.Learner, got a "
            f"{type(learner).__name__}"
        )


def _copied(inputs: Inputs) -> Inputs:
    return Inputs.joined([inputs])
