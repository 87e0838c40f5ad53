"""Makes the agent of an actor: its place on the exploration ladder, its items."""

from __future__ import annotations

from apex.acting.agent import Agent
from apex.acting.exploration import LadderPlace, ladder_positions, place_seeds
from apex.algos.base import Algorithm
from apex.config.sections import Config


def make_agent(
    algorithm: Algorithm,
    config: Config,
    core_size: int,
    slot: int,
    incarnation: int,
    agents_before: int = 0,
) -> Agent:
    """The agent of the actor in a slot.

    Args:
        algorithm: of the run.
        config: of the run.
        core_size: of the policy that will decide.
        slot: of the actor, which is its place on the exploration ladder.
        incarnation: of the actor, which explores differently after each start.
        agents_before: that were made for this incarnation: so do they.
    """
    num_envs, count = config.actor.num_envs, config.actor.count
    return Agent(
        algorithm.spec,
        num_envs,
        core_size,
        exploration=algorithm.exploration(
            LadderPlace(
                ladder_positions(slot, count, num_envs),
                count * num_envs,
                place_seeds(config.run.seed, slot, incarnation, num_envs, agents_before),
            )
        ),
        accumulator=algorithm.accumulator(num_envs, config.actor.chunk_length),
        clip_rewards=config.env.clip_rewards,
    )
