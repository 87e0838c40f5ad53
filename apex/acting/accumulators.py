"""Accumulators make items of the steps of environments: n-step transitions, in chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from apex.acting.frame_window import FrameRange, FrameWindow
from apex.types import LEARNER_STEP, Array, Arrays, Chunk, EnvSpec, FrameRanges

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class VectorStep:
    """One step of E environments: what was seen, what was done, and what came of it.

    Args:
        observations: `[E, *observation_shape]`, before the action.
        actions: `[E]`.
        extras: what the policy said besides the action, `[E]` each.
        rewards: `[E] float`, as learned from.
        terminated: `[E]`, the episode ended with this step and has no value beyond.
        truncated: `[E]`, the episode was cut with this step; its value goes on.
        life_lost: `[E]`, learn as if terminated, though the episode goes on.
        ignored: `[E]`, the environment ignored the action and started a new episode: the
            observation is the last one of the episode before, and this step is no transition.
        learner_step: of the parameters that acted.
    """

    observations: Array
    actions: npt.NDArray[np.int64]
    extras: Mapping[str, Floats]
    rewards: Floats
    terminated: Bools
    truncated: Bools
    life_lost: Bools
    ignored: Bools
    learner_step: int


class Accumulator(Protocol):
    """Turns the steps of a vector of environments into chunks of items."""

    def add(self, step: VectorStep) -> list[Chunk]:
        """Take one step; gives the chunks that it completed."""

    def flush(self) -> list[Chunk]:
        """The items that are complete but not yet in a chunk, for an orderly end."""


InitialPriorities = Callable[[Arrays, Mapping[str, Floats], Mapping[str, Floats]], Floats]
"""Columns of M items, the policy's extras at their first and at their bootstrap observation,
to `[M]` priorities."""


@dataclass(slots=True)
class _Pending:
    """A transition whose bootstrap observation is not there yet."""

    observation: Array | None
    action: Any
    extras: tuple[float, ...]
    first_frame: int
    pad_count: int
    learner_step: int
    n_step_return: float = 0.0
    steps: int = 0


class _Finished(NamedTuple):
    """A transition that is complete."""

    row: tuple[Any, ...]
    """Action, n-step return, discount, learner step."""
    observations: tuple[Array, Array] | None
    """The first and the bootstrap observation, where there are no frames."""
    extras: tuple[float, ...]
    bootstrap_extras: tuple[float, ...]
    frames: FrameRange
    """Where there are frames."""


class _EnvAccumulator:
    """n-step transitions of one environment."""

    def __init__(self, spec: EnvSpec, n_step: int, discount: float, chunk_length: int) -> None:
        self._stack = spec.frame_stack
        self._n_step = n_step
        self._discount = discount
        self._chunk_length = chunk_length
        self._pending: deque[_Pending] = deque()
        self._finished: list[_Finished] = []
        self._terminated = False
        self._cut = False
        self._frames = FrameWindow(spec.frame_stack)

    def add(self, row: tuple[Any, ...], extras: tuple[float, ...]) -> bool:
        """Take one step of the environment; whether a chunk is complete.

        Args:
            row: observation, action, reward, terminated, life_lost, ignored, learner_step.
            extras: the policy's extras for the observation.
        """
        observation, action, reward, terminated, life_lost, ignored, learner_step = row
        if self._stack:
            self._frames.append(observation)
            stored = None
        else:
            stored = observation.copy()
        if ignored or self._cut:
            while self._pending:
                self._finish(stored, extras, dead=self._terminated or self._cut)
            self._cut = False
        elif len(self._pending) == self._n_step:
            self._finish(stored, extras, dead=False)
        if ignored:
            self._frames.begin_episode()
        else:
            self._begin(stored, action, extras, reward, learner_step)
            self._terminated, self._cut = terminated, life_lost and not terminated
        return len(self._finished) >= self._chunk_length

    def _begin(
        self,
        stored: Array | None,
        action: Any,
        extras: tuple[float, ...],
        reward: float,
        learner_step: int,
    ) -> None:
        first, missing = self._frames.stack_begin()
        self._pending.append(_Pending(stored, action, extras, first, missing, learner_step))
        for pending in self._pending:
            if reward:
                pending.n_step_return += self._discount**pending.steps * reward
            pending.steps += 1

    def _finish(self, bootstrap: Array | None, extras: tuple[float, ...], dead: bool) -> None:
        item = self._pending.popleft()
        discount = 0.0 if dead else self._discount**item.steps
        observations = None
        if bootstrap is not None and item.observation is not None:
            observations = (item.observation, bootstrap)
        self._finished.append(
            _Finished(
                (item.action, item.n_step_return, discount, item.learner_step),
                observations,
                item.extras,
                extras,
                FrameRange(item.first_frame, self._frames.end, item.pad_count),
            )
        )

    def take_chunk(self, extra_names: list[str], priorities: InitialPriorities) -> Chunk:
        """The oldest finished items, at least one and at most `chunk_length`, as a chunk."""
        taken = self._finished[: self._chunk_length]
        del self._finished[: self._chunk_length]
        actions, returns, discounts, learner_steps = zip(*(item.row for item in taken))
        columns: Arrays = {
            "action": np.array(actions, dtype=np.int32),
            "n_step_return": np.array(returns, dtype=np.float32),
            "discount": np.array(discounts, dtype=np.float32),
            LEARNER_STEP: np.array(learner_steps, dtype=np.int64),
        }
        if not self._stack:
            first, bootstrap = zip(*(item.observations for item in taken if item.observations))
            columns["observation"] = np.stack(first)
            columns["next_observation"] = np.stack(bootstrap)
        return Chunk(
            columns,
            priorities(
                columns,
                _by_name(extra_names, [item.extras for item in taken]),
                _by_name(extra_names, [item.bootstrap_extras for item in taken]),
            ),
            self._cut_frames([item.frames for item in taken]) if self._stack else None,
        )

    @property
    def finished(self) -> int:
        """Items that are complete but in no chunk."""
        return len(self._finished)

    def _cut_frames(self, ranges: list[FrameRange]) -> FrameRanges:
        """The frames of items, and no more of those that no unfinished or future item can need."""
        cut = self._frames.cut(ranges)
        needed = None
        if self._finished:
            needed = self._finished[0].frames.first
        elif self._pending:
            needed = self._pending[0].first_frame
        self._frames.forget(needed)
        return cut


def _by_name(names: list[str], rows: list[tuple[float, ...]]) -> dict[str, Floats]:
    return {name: np.array(values, dtype=np.float64) for name, values in zip(names, zip(*rows))}


class NStepAccumulator:
    """n-step transitions of E environments.

    A transition holds exactly n rewards before its bootstrap observation, discounted gamma^n; at
    an episode's end the shorter tails are emitted with gamma^k. *Terminated* zeroes the discount,
    *truncated* bootstraps from the episode's last observation. No transition straddles episodes.

    Args:
        spec: of the environment.
        num_envs: E.
        n_step: n.
        discount: gamma.
        chunk_length: items in a chunk.
        extra_names: the policy's extras that the priorities are computed from.
        initial_priorities: computes them.
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int,
        *,
        n_step: int,
        discount: float,
        chunk_length: int,
        extra_names: list[str],
        initial_priorities: InitialPriorities,
    ) -> None:
        self._envs = [
            _EnvAccumulator(spec, n_step, discount, chunk_length) for _ in range(num_envs)
        ]
        self._extra_names = extra_names
        self._priorities = initial_priorities

    def add(self, step: VectorStep) -> list[Chunk]:
        """Take one step of all environments; gives the chunks that it completed."""
        rows = zip(
            step.observations,
            step.actions.tolist(),
            step.rewards.tolist(),
            step.terminated.tolist(),
            step.life_lost.tolist(),
            step.ignored.tolist(),
            [step.learner_step] * len(self._envs),
        )
        extras = zip(*(step.extras[name].tolist() for name in self._extra_names))
        full = [env for env, row, extra in zip(self._envs, rows, extras) if env.add(row, extra)]
        return [self._take(env) for env in full]

    def flush(self) -> list[Chunk]:
        """The items that are finished but not yet in a chunk."""
        chunks = []
        for env in self._envs:
            while env.finished:
                chunks.append(self._take(env))
        return chunks

    def _take(self, env: _EnvAccumulator) -> Chunk:
        return env.take_chunk(self._extra_names, self._priorities)
