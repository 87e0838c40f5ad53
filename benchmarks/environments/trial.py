"""Try an environment as a run would: explore in it, then evaluate in it once."""

from __future__ import annotations

import contextlib
from typing import NamedTuple

import msgspec
import torch

from apex.acting.agent import LocalDecider, greedy
from apex.acting.exploration import environments_seed, evaluation_seed
from apex.acting.loop import ActingLoop, play_episodes
from apex.algos.agent_factory import make_agent
from apex.algos.registry import make_algorithm
from apex.config.sections import Config
from apex.envs.registry import make_environments

NUM_ENVS = 2


class Trial(NamedTuple):
    """What happened in an environment."""

    env_id: str
    num_actions: int
    """Discrete actions; 0: other actions."""
    explored: int
    """Steps of all environments, resets not counted."""
    episodes: int
    """Episodes that ended among them."""
    items: int
    """Items that the steps made."""
    evaluation: float | None
    """Return of one greedy episode of an untrained policy; None: it did not end."""
    evaluated: int
    """Steps of that episode."""


def try_out(config: Config, *, steps: int, evaluation_steps: int) -> Trial:
    """Step two environments with an exploring, untrained policy; then play one greedy episode.

    Args:
        config: as of a run; its algorithm chooses the actions.
        steps: steps of both environments together.
        evaluation_steps: steps after which the evaluation is given up.

    Raises:
        ApexError: the environment or the algorithm cannot be used.
    """
    torch.manual_seed(config.run.seed)
    one_actor = msgspec.structs.replace(config.actor, count=1, num_envs=NUM_ENVS)
    config = msgspec.structs.replace(config, actor=one_actor)
    with contextlib.closing(make_environments(config.env, NUM_ENVS)) as environments:
        spec = environments.spec
        algorithm = make_algorithm(config.algorithm, spec, env=config.env)
        policy = algorithm.policy()
        agent = make_agent(algorithm, config, policy.core_size, 0, 0)
        loop = ActingLoop(
            environments,
            LocalDecider(policy, agent),
            seed=environments_seed(config.run.seed, 0, 0),
        )
        while loop.env_steps < steps:
            loop.step()
        items = sum(len(chunk) for chunk in agent.flush())
    env = config.evaluation_env
    with contextlib.closing(make_environments(env, 1)) as environments:
        played = ActingLoop(
            environments, greedy(policy, spec, env, 1), seed=evaluation_seed(config.run.seed)
        )
        returns = play_episodes(played, 1, 1, lambda: played.env_steps < evaluation_steps)
    return Trial(
        spec.env_id,
        spec.num_actions,
        loop.env_steps,
        loop.episodes,
        items,
        returns[0] if returns else None,
        played.env_steps,
    )
