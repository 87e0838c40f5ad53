"""Make the agent of an actor, with its place on the exploration ladder and its accumulator."""

from __future__ import annotations

from apex.acting.agent import Agent
from apex.acting.exploration import LadderPlace, ladder_positions, place_seeds
from apex.acting.normalization import MomentCollector, MomentRecorder
from apex.algos.base import Algorithm
from apex.config.sections import Config


def make_lanes(
    algorithm: Algorithm,
    config: Config,
    core_size: int,
    slot: int,
    incarnation: int,
    collector: MomentCollector | None = None,
) -> list[Agent]:
    """Make an agent for each environment of the actor in a slot.

    Places on the ladder and seeds are those of `make_agent`.
    """
    num_envs, count = config.actor.num_envs, config.actor.count
    positions = ladder_positions(slot, count, num_envs)
    seeds = place_seeds(config.run.seed, slot, incarnation, num_envs)
    return [
        Agent(
            algorithm.spec,
            1,
            core_size,
            exploration=algorithm.exploration(
                LadderPlace(positions[env : env + 1], count * num_envs, seeds[env : env + 1])
            ),
            accumulator=algorithm.accumulator(1, config.actor.chunk_length),
            clip_rewards=config.env.clip_rewards,
            moments=_recorder(algorithm, collector),
        )
        for env in range(num_envs)
    ]


def make_agent(
    algorithm: Algorithm,
    config: Config,
    core_size: int,
    slot: int,
    incarnation: int,
    agents_before: int = 0,
    collector: MomentCollector | None = None,
) -> Agent:
    """Make the agent of the actor in a slot.

    Args:
        algorithm: the run's algorithm.
        config: the run's configuration.
        core_size: numbers in the policy's recurrent state of one environment.
        slot: the actor's slot, which determines its place on the exploration ladder.
        incarnation: number of this start of the actor; each start explores differently.
        agents_before: agents made earlier for the same incarnation; each explores differently.
        collector: receives the statistics of normalisation, if the run normalises.
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
        moments=_recorder(algorithm, collector),
    )


def _recorder(algorithm: Algorithm, collector: MomentCollector | None) -> MomentRecorder | None:
    """What an agent records for normalisation; None: the run does not normalise."""
    if algorithm.normalization is None or collector is None:
        return None
    return MomentRecorder(algorithm.normalization, collector)
