"""The acting loop: step environments with a decider's actions and add up episode returns."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from apex.acting.episodes import Episode
from apex.data.observations import Observations
from apex.data.schema import Array
from apex.envs.spec import StepResult
from apex.errors import EnvFaultError

if TYPE_CHECKING:  # only for annotations: importing it imports gymnasium
    from apex.envs.base import Environments

log = logging.getLogger("apex.acting")

RECENT_EPISODES = 20
LONG_EPISODE = 100_000
"""Steps after which an episode that has not ended is reported. Atari's longest have 27,000."""
LENGTHS_EVERY = 1000
"""Steps between two looks at the lengths of episodes."""


class Decider(Protocol):
    """Chooses actions for E environments, with a policy in this process or another one."""

    def begin(self, observations: Observations) -> None:
        """Begin episodes in all environments with `[E, *observation_shape]`, or by name."""

    def decide(self) -> Array:
        """Actions `[E, *action shape]` for the last observations. Call it once for each."""

    def observe(self, result: StepResult) -> None:
        """Add the results of the last actions."""

    def cut(self) -> None:
        """Truncate all episodes: the environments failed and the last actions have no result."""


def warn_of_long_episode(env: int, steps: int) -> None:
    """Log that an environment's episode has lasted unusually long."""
    log.warning(
        "environment %d: its episode has not ended after %d steps, so it has no return yet; "
        "set env.max_episode_steps if episodes may be endless",
        env, steps,
    )  # fmt: skip


class ActingLoop:
    """Steps environments and reports the returns of their episodes.

    Args:
        environments: the environments, stepped together.
        decider: chooses the actions.
        seed: seed of the environments.
        long_episode: steps after which an episode that has not ended is logged.
    """

    def __init__(
        self,
        environments: Environments,
        decider: Decider,
        *,
        seed: int,
        long_episode: int = LONG_EPISODE,
    ) -> None:
        self._decider = decider
        self._long_episode = long_episode
        self._environments: Environments
        self._ignored: npt.NDArray[np.bool_]
        self._returns: npt.NDArray[np.float64]
        self.begin(environments, seed)
        self._steps = 0
        self.env_steps = 0
        self.episodes = 0
        self.recent_returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        """Undiscounted, unclipped returns of the last `RECENT_EPISODES` episodes."""
        self.recent_metrics: deque[Mapping[str, float]] = deque(maxlen=RECENT_EPISODES)
        """`Episode.metrics` of the same episodes."""

    def begin(self, environments: Environments, seed: int) -> None:
        """Reset the environments and begin episodes.

        Args:
            environments: after a fault, new environments that replace the failed ones.
            seed: seed of the environments.

        Raises:
            EnvFaultError: the reset failed.
        """
        self._decider.begin(environments.reset(seed))
        self._environments = environments
        self._ignored = np.zeros(environments.num_envs, dtype=np.bool_)
        self._returns = np.zeros(environments.num_envs)
        self._lengths = np.zeros(environments.num_envs, dtype=np.int64)
        self._report_at = self._long_episode

    @property
    def longest_episode(self) -> int:
        """Steps of the longest episode that has not ended."""
        return int(self._lengths.max())

    def step(self) -> list[Episode]:
        """Step all environments once; return the episodes that ended.

        Raises:
            EnvFaultError: an environment failed.
        """
        try:
            result = self._environments.step(self._decider.decide())
        except EnvFaultError:
            self._decider.cut()
            raise
        self._decider.observe(result)
        ended = (result.terminated | result.truncated) & ~self._ignored
        self._returns += result.rewards
        self._lengths += 1
        self.env_steps += len(ended) - int(np.count_nonzero(self._ignored))
        self._ignored = ended  # their next step ignores its action and begins an episode
        self._steps += 1
        if self._steps % LENGTHS_EVERY == 0:
            self._report_long_episode()
        return self._finish(ended, result.metrics) if ended.any() else []

    def _report_long_episode(self) -> None:
        """Log an episode that has lasted unusually long, at 100,000 steps, 200,000 and so on."""
        if self.longest_episode < self._report_at:
            return
        self._report_at = 2 * self.longest_episode
        warn_of_long_episode(int(self._lengths.argmax()), self.longest_episode)

    def _finish(
        self, ended: npt.NDArray[np.bool_], metrics: Mapping[str, npt.NDArray[np.float64]]
    ) -> list[Episode]:
        finished = [
            Episode(env, float(self._returns[env]), measured_at(env, metrics))
            for env in np.flatnonzero(ended).tolist()
        ]
        self._returns[ended] = 0.0
        self._lengths[ended] = 0
        self.episodes += len(finished)
        self.recent_returns.extend(episode.episode_return for episode in finished)
        self.recent_metrics.extend(episode.metrics for episode in finished)
        return finished


def measured_at(env: int, metrics: Mapping[str, npt.NDArray[np.float64]]) -> dict[str, float]:
    """One environment's values of `StepResult.metrics`, without those that are NaN."""
    values = {name: float(column[env]) for name, column in metrics.items()}
    return {name: value for name, value in values.items() if not np.isnan(value)}


def play_episodes(
    loop: ActingLoop, num_envs: int, episodes: int, proceed: Callable[[], bool]
) -> list[Episode] | None:
    """Play complete episodes, the same number in each environment.

    Taking the first `episodes` to finish would favour short ones.

    Args:
        loop: acting loop with `num_envs` environments.
        num_envs: number of environments.
        episodes: total number of episodes, a multiple of `num_envs`.
        proceed: called before each step; playing stops when it returns False.

    Returns:
        The episodes, those of the first environment first; None if `proceed` stopped it.
    """
    per_env = episodes // num_envs
    played: list[list[Episode]] = [[] for _ in range(num_envs)]
    while any(len(finished) < per_env for finished in played):
        if not proceed():
            return None
        for episode in loop.step():
            if len(played[episode.env]) < per_env:
                played[episode.env].append(episode)
    return [episode for finished in played for episode in finished]
