"""Lanes: environments that step at their own pace, with an agent for each.

A lane is one environment with its items, exploration and recurrent state. Actions for all
environments that have answered are computed in one batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from apex.acting.agent import Agent
from apex.acting.decisions import ActingPolicy, Exploration, Inputs, JoinedExploration
from apex.acting.episodes import Episode
from apex.acting.loop import LONG_EPISODE, RECENT_EPISODES, measured_at, warn_of_long_episode
from apex.data.chunks import Chunk
from apex.data.schema import Array
from apex.envs.spec import StepResult

if TYPE_CHECKING:  # only for annotations: importing it imports gymnasium
    from apex.envs.async_environments import AsyncEnvironments, LaneAnswer


class LaneDecider(Protocol):
    """Chooses actions for environments that step at their own pace."""

    def begin(self, lane: int, observation: Any) -> None:
        """Begin an episode with `[1, *observation_shape]`; an unfinished one is truncated."""

    def decide(self, lanes: Sequence[int]) -> Array:
        """Actions `[len(lanes), *action shape]` for the last observations of some environments."""

    def observe(self, lane: int, result: StepResult) -> None:
        """Add the result of one environment's last action."""

    def cut(self, lane: int) -> None:
        """Truncate an environment's episode: it failed and its last action has no result."""


class Lanes:
    """A lane decider with the agents and their policy in one process.

    Args:
        policy: chooses the actions.
        agents: one for each environment, of one environment each.
        learner_step: learner step of the policy's parameters; set it when loading new ones.
        on_items: called after each result, with the chunks that it completed.
    """

    def __init__(
        self,
        policy: ActingPolicy,
        agents: Sequence[Agent],
        learner_step: int,
        on_items: Callable[[list[Chunk]], None],
    ) -> None:
        self._policy = policy
        self._agents = agents
        self.learner_step = learner_step
        self._on_items = on_items

    def exploration(self, lanes: Sequence[int] | None = None) -> Exploration | None:
        """The exploration of some environments together, or of all; None: they act greedily."""
        agents = self._agents if lanes is None else [self._agents[lane] for lane in lanes]
        parts = [(agent.exploration, 1) for agent in agents if agent.exploration is not None]
        return JoinedExploration(parts) if parts else None

    def describe(self) -> str:
        """The exploration of the first and the last environment, for the log."""
        ends = (self._agents[0].exploration, self._agents[-1].exploration)
        texts = [end.describe() for end in ends if end is not None]
        return " … ".join(dict.fromkeys(texts)) or "greedy"

    def begin(self, lane: int, observation: Any) -> None:
        """Begin an episode in one environment."""
        self._agents[lane].begin(observation)
        self._on_items(self._agents[lane].take_chunks())

    def decide(self, lanes: Sequence[int]) -> Array:
        """Choose actions for some environments, in one batch."""
        agents = [self._agents[lane] for lane in lanes]
        inputs = Inputs.joined([agent.inputs for agent in agents])
        decision = self._policy.act(inputs, self.exploration(lanes))
        for row, agent in enumerate(agents):
            agent.decide(decision.rows(row, row + 1), self.learner_step)
        return decision.actions

    def observe(self, lane: int, result: StepResult) -> None:
        """Add the result of one environment."""
        self._agents[lane].observe(result)
        self._on_items(self._agents[lane].take_chunks())

    def cut(self, lane: int) -> None:
        """Truncate one environment's episode after it failed."""
        self._agents[lane].cut()
        self._on_items(self._agents[lane].take_chunks())

    def flush(self) -> list[Chunk]:
        """Return all complete items of all environments. Called at shutdown."""
        return [chunk for agent in self._agents for chunk in agent.flush()]


class LaneLoop:
    """Lets environments step at their own pace, and reports the returns of their episodes.

    Args:
        environments: the environments, which have been started.
        decider: chooses the actions.
        wait_s: seconds that `step` waits for an answer.
        long_episode: steps after which an episode that has not ended is logged.
    """

    def __init__(
        self,
        environments: AsyncEnvironments,
        decider: LaneDecider,
        wait_s: float,
        long_episode: int = LONG_EPISODE,
    ) -> None:
        self._environments, self._decider, self._wait_s = environments, decider, wait_s
        self._ignored = [False] * environments.num_envs
        """Whether the next step of an environment ignores its action and begins an episode."""
        self._returns = [0.0] * environments.num_envs
        self._lengths = [0] * environments.num_envs
        self._report_at = long_episode
        self._known = [False] * environments.num_envs
        """Whether an environment has begun an episode before."""
        self.env_steps = 0
        self.episodes = 0
        self.recent_returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        """Undiscounted, unclipped returns of the last `RECENT_EPISODES` episodes."""
        self.recent_metrics: deque[Mapping[str, float]] = deque(maxlen=RECENT_EPISODES)
        """`Episode.metrics` of the same episodes."""

    def step(self) -> list[Episode]:
        """Process the answers that have arrived, and decide for the environments that gave them.

        Returns:
            The episodes that ended. One that a failure cut short is not among them.
        """
        finished: list[Episode] = []
        ready: list[int] = []
        for answer in self._environments.answers(self._wait_s):
            if answer.result is None and answer.begun is None:
                self._cut(answer.lane)
                continue
            ready.append(answer.lane)
            finished += self._on_answer(answer)
        if ready:
            self._environments.send(ready, self._decider.decide(ready))
        return finished

    def _cut(self, lane: int) -> None:
        if self._known[lane]:
            self._decider.cut(lane)

    def _on_answer(self, answer: LaneAnswer) -> list[Episode]:
        lane, result = answer.lane, answer.result
        if result is None:
            self._decider.begin(lane, answer.begun)
            self._known[lane], self._ignored[lane], self._returns[lane] = True, False, 0.0
            self._lengths[lane] = 0
            return []
        self._decider.observe(lane, result)
        ignored, self._ignored[lane] = self._ignored[lane], False
        self._returns[lane] += float(result.rewards[0])
        if ignored:
            return []
        self.env_steps += 1
        self._lengths[lane] += 1
        if self._lengths[lane] >= self._report_at:
            self._report_at = 2 * self._lengths[lane]
            warn_of_long_episode(lane, self._lengths[lane])
        if not (result.terminated[0] or result.truncated[0]):
            return []
        episode = Episode(lane, self._returns[lane], measured_at(0, result.metrics))
        self._ignored[lane], self._returns[lane], self._lengths[lane] = True, 0.0, 0
        self.episodes += 1
        self.recent_returns.append(episode.episode_return)
        self.recent_metrics.append(episode.metrics)
        return [episode]
