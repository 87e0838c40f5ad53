"""The acting loop: step environments with a decider's actions and add up episode returns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from apex.data.observations import Observations
from apex.data.schema import Array
from apex.envs.spec import StepResult
from apex.errors import EnvFaultError

if TYPE_CHECKING:  # only for annotations: importing it imports gymnasium
    from apex.envs.base import Environments

RECENT_EPISODES = 20


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


class ActingLoop:
    """Steps environments and reports the returns of their episodes.

    Args:
        environments: the environments, stepped together.
        decider: chooses the actions.
        seed: seed of the environments.
    """

    def __init__(self, environments: Environments, decider: Decider, *, seed: int) -> None:
        self._decider = decider
        self._environments: Environments
        self._ignored: npt.NDArray[np.bool_]
        self._returns: npt.NDArray[np.float64]
        self.begin(environments, seed)
        self.env_steps = 0
        self.episodes = 0
        self.recent_returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        """Undiscounted, unclipped returns of the last `RECENT_EPISODES` episodes."""

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

    def step(self) -> list[tuple[int, float]]:
        """Step all environments once.

        Returns:
            (environment index, return) of each episode that ended.

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
        self.env_steps += len(ended) - int(np.count_nonzero(self._ignored))
        self._ignored = ended  # their next step ignores its action and begins an episode
        return self._finish(ended) if ended.any() else []

    def _finish(self, ended: npt.NDArray[np.bool_]) -> list[tuple[int, float]]:
        finished = [(int(env), float(self._returns[env])) for env in np.flatnonzero(ended)]
        self._returns[ended] = 0.0
        self.episodes += len(finished)
        self.recent_returns.extend(value for _, value in finished)
        return finished


def play_episodes(
    loop: ActingLoop, num_envs: int, episodes: int, proceed: Callable[[], bool]
) -> list[float] | None:
    """Play complete episodes, the same number in each environment.

    Taking the first `episodes` to finish would favour short ones.

    Args:
        loop: acting loop with `num_envs` environments.
        num_envs: number of environments.
        episodes: total number of episodes, a multiple of `num_envs`.
        proceed: called before each step; playing stops when it returns False.

    Returns:
        The episodes' returns; None if `proceed` stopped it.
    """
    per_env = episodes // num_envs
    returns: list[list[float]] = [[] for _ in range(num_envs)]
    while any(len(values) < per_env for values in returns):
        if not proceed():
            return None
        for env, value in loop.step():
            if len(returns[env]) < per_env:
                returns[env].append(value)
    return [value for values in returns for value in values]
