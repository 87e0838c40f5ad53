"""The acting loop: steps environments by what a decider decides, and sums up whole episodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from apex.data.schema import Array
from apex.envs.spec import StepResult
from apex.errors import EnvFaultError

if TYPE_CHECKING:  # who only names these types needs no gymnasium
    from apex.envs.base import Environments

RECENT_EPISODES = 20


class Decider(Protocol):
    """Decides what E environments do, wherever its policy runs."""

    def begin(self, observations: Array) -> None:
        """Episodes begin everywhere, `[E, *observation_shape]`."""

    def decide(self) -> Array:
        """The actions `[E, *action shape]` for the last observations; asked once for each."""

    def observe(self, result: StepResult) -> None:
        """What came of them."""

    def cut(self) -> None:
        """The environments have failed: nothing came of what was decided last."""


class ActingLoop:
    """Steps environments and reports the returns of their episodes.

    Args:
        environments: stepped together.
        decider: decides.
        seed: of the environments.
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
        """Whole and unclipped, of the last episodes."""

    def begin(self, environments: Environments, seed: int) -> None:
        """Begin episodes; after a step that raised with other environments of the same kind.

        Raises:
            EnvFaultError: their reset raised.
        """
        self._decider.begin(environments.reset(seed))
        self._environments = environments
        self._ignored = np.zeros(environments.num_envs, dtype=np.bool_)
        self._returns = np.zeros(environments.num_envs)

    def step(self) -> list[tuple[int, float]]:
        """One step of all environments.

        Returns:
            (environment, return) of each episode that ended.

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
    """Returns of whole episodes, the same number from each environment.

    Taking the first `episodes` that finish would favour short ones.

    Args:
        loop: with `num_envs` environments, of which `episodes` is a multiple.
        proceed: asked at each step; None is returned when it says no.
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
