"""Accumulators make items of the steps of environments: n-step transitions, in chunks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from apex import frames
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


@dataclass
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


@dataclass
class _Finished:
    """Columns of finished items, as lists."""

    rows: list[tuple[Any, ...]] = field(default_factory=list)
    observations: list[Array] = field(default_factory=list)
    next_observations: list[Array] = field(default_factory=list)
    extras: list[tuple[float, ...]] = field(default_factory=list)
    bootstrap_extras: list[tuple[float, ...]] = field(default_factory=list)
    ranges: list[tuple[int, int, int]] = field(default_factory=list)


class _EnvAccumulator:
    """n-step transitions of one environment."""

    def __init__(self, spec: EnvSpec, n_step: int, discount: float, chunk_length: int) -> None:
        self._stack = spec.frame_stack
        self._n_step = n_step
        self._discount = discount
        self._chunk_length = chunk_length
        self._pending: deque[_Pending] = deque()
        self._finished = _Finished()
        self._terminated = False
        self._cut = False
        self._frames: list[bytes] = []
        self._frames_base = 0
        """Number of the frame that stands first in `_frames`, counted since the start."""
        self._frames_in_episode = 0

    def add(self, row: tuple[Any, ...], extras: tuple[float, ...]) -> bool:
        """Take one step of the environment; whether a chunk is complete.

        Args:
            row: observation, action, reward, terminated, life_lost, ignored, learner_step.
            extras: the policy's extras for the observation.
        """
        observation, action, reward, terminated, life_lost, ignored, learner_step = row
        if self._stack:
            self._frames.append(frames.compress(observation))
            self._frames_in_episode += 1
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
            self._frames_in_episode = 0
        else:
            self._begin(stored, action, extras, reward, learner_step)
            self._terminated, self._cut = terminated, life_lost and not terminated
        return len(self._finished.rows) >= self._chunk_length

    def _begin(
        self,
        stored: Array | None,
        action: Any,
        extras: tuple[float, ...],
        reward: float,
        learner_step: int,
    ) -> None:
        newest = self._frames_base + len(self._frames) - 1
        missing = max(0, self._stack - self._frames_in_episode)
        first = newest - (self._stack - 1 - missing)
        self._pending.append(_Pending(stored, action, extras, first, missing, learner_step))
        for pending in self._pending:
            pending.n_step_return += self._discount**pending.steps * reward
            pending.steps += 1

    def _finish(self, bootstrap: Array | None, extras: tuple[float, ...], dead: bool) -> None:
        item = self._pending.popleft()
        discount = 0.0 if dead else self._discount**item.steps
        finished = self._finished
        finished.rows.append((item.action, item.n_step_return, discount, item.learner_step))
        finished.extras.append(item.extras)
        finished.bootstrap_extras.append(extras)
        if self._stack:
            newest = self._frames_base + len(self._frames) - 1
            finished.ranges.append((item.first_frame, newest + 1, item.pad_count))
        else:
            assert item.observation is not None and bootstrap is not None
            finished.observations.append(item.observation)
            finished.next_observations.append(bootstrap)

    def take_chunk(self, extra_names: list[str], priorities: InitialPriorities) -> Chunk | None:
        """The finished items as a chunk, or None when there are none."""
        finished, self._finished = self._finished, _Finished()
        if not finished.rows:
            return None
        actions, returns, discounts, learner_steps = zip(*finished.rows)
        columns: Arrays = {
            "action": np.array(actions, dtype=np.int32),
            "n_step_return": np.array(returns, dtype=np.float32),
            "discount": np.array(discounts, dtype=np.float32),
            LEARNER_STEP: np.array(learner_steps, dtype=np.int64),
        }
        if not self._stack:
            columns["observation"] = np.stack(finished.observations)
            columns["next_observation"] = np.stack(finished.next_observations)
        return Chunk(
            columns,
            priorities(
                columns,
                _by_name(extra_names, finished.extras),
                _by_name(extra_names, finished.bootstrap_extras),
            ),
            self._take_frames(finished.ranges) if self._stack else None,
        )

    def _take_frames(self, ranges: list[tuple[int, int, int]]) -> FrameRanges:
        first, end, pad = np.array(ranges, dtype=np.int64).T
        begin = int(first.min())
        kept = self._frames[begin - self._frames_base : int(end.max()) - self._frames_base]
        chunk_frames = FrameRanges(
            first_frame=(first - begin).astype(np.int32),
            frame_count=(end - first).astype(np.int32),
            pad_count=pad.astype(np.int32),
            frame_lengths=np.array([len(frame) for frame in kept], dtype=np.int32),
            blob=b"".join(kept),
        )
        self._forget_frames()
        return chunk_frames

    def _forget_frames(self) -> None:
        """Drop the frames that no unfinished or future item can need."""
        newest = self._frames_base + len(self._frames) - 1
        needed = self._pending[0].first_frame if self._pending else newest - self._stack + 1
        drop = max(0, needed - self._frames_base)
        del self._frames[:drop]
        self._frames_base += drop


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
        return self._chunks(full)

    def flush(self) -> list[Chunk]:
        """The items that are finished but not yet in a chunk."""
        return self._chunks(self._envs)

    def _chunks(self, envs: list[_EnvAccumulator]) -> list[Chunk]:
        chunks = (env.take_chunk(self._extra_names, self._priorities) for env in envs)
        return [chunk for chunk in chunks if chunk is not None]
