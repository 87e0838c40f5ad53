"""The acting loop: observations to actions to chunks of items, and returns of whole episodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from apex.acting.accumulators import Accumulator, VectorStep
from apex.errors import EnvFaultError
from apex.types import Array, Chunk

if TYPE_CHECKING:  # algorithms import this module, and need no gymnasium
    from apex.envs.base import Environments

RECENT_EPISODES = 20


class Decision(NamedTuple):
    """What a policy decided for E environments."""

    actions: npt.NDArray[np.int64]
    state: Any
    extras: dict[str, npt.NDArray[np.float64]]


class Exploration(Protocol):
    """Replaces some of the policy's own actions, for each environment in its own measure."""

    def __call__(self, greedy: Array) -> Array:
        """Actions to take, given the policy's own, `[E, ...]` both."""

    def describe(self) -> str:
        """For the log: how much it explores."""


class ActingPolicy(Protocol):
    """Chooses actions for E environments."""

    def initial_state(self, num_envs: int) -> Any:
        """The recurrent state at an episode's start, or None."""

    def act(self, observations: Array, state: Any, exploration: Exploration | None) -> Decision:
        """Decide; greedily where `exploration` is None."""


class FrameStacker:
    """Keeps the last `depth` frames of E environments; before an episode's start they are zero.

    With a depth of 0 observations pass through.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._stack: Array | None = None

    def push(self, observations: Array, first: npt.NDArray[np.bool_]) -> Array:
        """Add one frame an environment.

        Args:
            observations: `[E, ...]`.
            first: `[E]`, whether it begins an episode.

        Returns:
            `[E, depth, ...]`; the same memory at each call.
        """
        if self._depth == 0:
            return observations
        if self._stack is None:
            shape = (len(observations), self._depth, *observations.shape[1:])
            self._stack = np.zeros(shape, dtype=observations.dtype)
        self._stack[:, :-1] = self._stack[:, 1:]
        self._stack[first, :-1] = 0
        self._stack[:, -1] = observations
        return self._stack


class ActingLoop:
    """Steps environments with a policy and hands each step to an accumulator.

    Args:
        environments: stepped together.
        policy: decides.
        exploration: replaces greedy actions; None: greedy.
        accumulator: makes items; None when only returns are wanted.
        clip_rewards: clip the rewards that the accumulator gets to [-1, 1].
        seed: of the environments.
    """

    def __init__(
        self,
        environments: Environments,
        policy: ActingPolicy,
        exploration: Exploration | None,
        accumulator: Accumulator | None,
        *,
        clip_rewards: bool,
        seed: int,
    ) -> None:
        self._policy = policy
        self._exploration = exploration
        self._accumulator = accumulator
        self._clip_rewards = clip_rewards
        self._stacker = FrameStacker(environments.spec.frame_stack)
        self._chunks_of_fault: list[Chunk] = []
        self._environments: Environments
        self._state: Any
        self._observations: Array
        self._starts: npt.NDArray[np.bool_]
        self._ignored: npt.NDArray[np.bool_]
        self._returns: npt.NDArray[np.float64]
        self.begin(environments, seed)
        self.learner_step = 0
        """Of the policy's parameters; whoever loads them sets it."""
        self.env_steps = 0
        self.episodes = 0
        self.recent_returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        """Whole and unclipped, of the last episodes."""

    def step(self) -> tuple[list[Chunk], list[tuple[int, float]]]:
        """One step of all environments.

        Returns:
            The completed chunks, and (environment, return) of each episode that ended.
        """
        observations = self._observations
        inputs = self._stacker.push(observations, self._starts)
        actions, self._state, extras = self._policy.act(inputs, self._state, self._exploration)
        try:
            result = self._environments.step(actions)
        except EnvFaultError:
            self._cut(Decision(actions, None, extras))
            raise
        chunks, self._chunks_of_fault = self._chunks_of_fault, []
        if self._accumulator is not None:
            rewards = np.clip(result.rewards, -1, 1) if self._clip_rewards else result.rewards
            chunks += self._accumulator.add(
                VectorStep(
                    observations, actions, extras, rewards, result.terminated, result.truncated,
                    result.life_lost, self._ignored, self.learner_step,
                )
            )  # fmt: skip
        ended = (result.terminated | result.truncated) & ~self._ignored
        self._returns += result.rewards
        finished = [(int(env), float(self._returns[env])) for env in np.flatnonzero(ended)]
        self._returns[ended] = 0.0
        self.env_steps += int((~self._ignored).sum())
        self.episodes += len(finished)
        self.recent_returns.extend(value for _, value in finished)
        # The step after an end ignores its action and brings the new episode's first observation.
        self._observations, self._starts, self._ignored = (
            result.observations, self._ignored, ended,
        )  # fmt: skip
        return chunks, finished

    def _cut(self, decision: Decision) -> None:
        """Truncate every episode at its last observation: what was decided there never happened."""
        everywhere = np.ones(self._environments.num_envs, dtype=np.bool_)
        nowhere = ~everywhere
        if self._accumulator is not None:
            self._chunks_of_fault += self._accumulator.add(
                VectorStep(
                    self._observations, decision.actions, decision.extras, np.zeros(len(nowhere)),
                    nowhere, nowhere, nowhere, everywhere, self.learner_step,
                )
            )  # fmt: skip

    def begin(self, environments: Environments, seed: int) -> None:
        """Begin episodes; after a step that raised with other environments of the same kind.

        Raises:
            EnvFaultError: their reset raised.
        """
        self._observations = environments.reset(seed)
        self._environments = environments
        self._state = self._policy.initial_state(environments.num_envs)
        self._starts = np.ones(environments.num_envs, dtype=np.bool_)
        self._ignored = np.zeros(environments.num_envs, dtype=np.bool_)
        self._returns = np.zeros(environments.num_envs)

    def flush(self) -> list[Chunk]:
        """Items that are complete but not yet in a chunk, for an orderly end."""
        chunks, self._chunks_of_fault = self._chunks_of_fault, []
        return chunks + (self._accumulator.flush() if self._accumulator is not None else [])


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
        for env, value in loop.step()[1]:
            if len(returns[env]) < per_env:
                returns[env].append(value)
    return [value for values in returns for value in values]
