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
    whole = _place(config, slot, incarnation)
    places = [
        LadderPlace(whole.positions[env : env + 1], whole.size, whole.seeds[env : env + 1])
        for env in range(config.actor.num_envs)
    ]
    return [_agent(algorithm, config, core_size, place, collector) for place in places]


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
    place = _place(config, slot, incarnation, agents_before)
    return _agent(algorithm, config, core_size, place, collector)


def _place(config: Config, slot: int, incarnation: int, agents_before: int = 0) -> LadderPlace:
    """The place of an actor's environments on the ladder, and their seeds."""
    num_envs, count = config.actor.num_envs, config.actor.count
    return LadderPlace(
        ladder_positions(slot, count, num_envs),
        count * num_envs,
        place_seeds(config.run.seed, slot, incarnation, num_envs, agents_before),
    )


def _agent(
    algorithm: Algorithm,
    config: Config,
    core_size: int,
    place: LadderPlace,
    collector: MomentCollector | None,
) -> Agent:
    """Make the agent of the environments at a place on the ladder."""
    num_envs, moments = len(place.positions), None
    if algorithm.normalization is not None and collector is not None:
        moments = MomentRecorder(algorithm.normalization, collector)
    return Agent(
        algorithm.spec,
        num_envs,
        core_size,
        exploration=algorithm.exploration(place),
        accumulator=algorithm.accumulator(num_envs, config.actor.chunk_length),
        clip_rewards=config.env.clip_rewards,
        moments=moments,
    )
