"""Turn environment steps into chunks of n-step transitions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from apex.acting.accumulator import Bools, Floats, VectorStep
from apex.acting.frame_window import Rows, cut_frames
from apex.acting.observation_columns import ObservationColumns
from apex.data.chunks import Chunk
from apex.data.schema import LEARNER_STEP, Array, Arrays, Column
from apex.envs.spec import EnvSpec

InitialPriorities = Callable[[Arrays, Mapping[str, Floats], Mapping[str, Floats]], Floats]
"""Computes `[M]` priorities from the columns of M items and the policy's extra outputs at their
first and at their bootstrap observations."""


class _Steps:
    """The steps of E environments that transitions still need, one row per step.

    Args:
        num_envs: E.
        history: rows before a transition whose frames its first frame stack needs.
    """

    CAPACITY = 64
    """Initial number of rows; it is doubled when they are full."""

    def __init__(self, num_envs: int, history: int) -> None:
        self._num_envs = num_envs
        self._history = history
        self._columns: Arrays = {}
        self.frames: list[list[bytes]] = [[] for _ in range(num_envs)]
        """Compressed frames of each environment, one per row; empty without frames."""
        self.rows = 0

    def of(self, name: str, env: int) -> Array:
        """One column of one environment, `[rows, ...]`."""
        column: Array = self._columns[name][env, : self.rows]
        return column

    def append(self, columns: Mapping[str, Array]) -> None:
        """Add one row of each environment, `[E, ...]` in each column."""
        row, self.rows = self.rows, self.rows + 1
        for name, values in columns.items():
            column = self._columns.get(name)
            if column is None:
                shape = (self._num_envs, self.CAPACITY, *values.shape[1:])
                column = self._columns[name] = np.zeros(shape, values.dtype)
            elif row == column.shape[1]:
                column = np.concatenate((column, np.zeros_like(column)), axis=1)
                self._columns[name] = column
            column[:, row] = values

    def forget(self, before: int) -> int:
        """Drop the rows that transitions from row `before` on do not need; returns how many."""
        drop = max(0, before - self._history)
        if drop:
            kept = self.rows - drop
            for column in self._columns.values():
                column[:, :kept] = column[:, drop : self.rows].copy()
            for compressed in self.frames:
                del compressed[:drop]
            self.rows = kept
        return drop


class NStepAccumulator:
    """Turns steps of E environments into n-step transitions.

    A transition has n rewards and the discount gamma^n for its bootstrap observation; at the end
    of an episode there are shorter ones with k < n rewards and gamma^k. After a termination or a
    lost life the discount is 0; a truncated episode is bootstrapped from its last observation. No
    transition crosses an episode boundary.

    `add` only records the steps, of all environments at once; the transitions are computed when
    they fill a chunk.

    Args:
        spec: specification of the environments.
        num_envs: E.
        n_step: n.
        discount: gamma, per environment step.
        chunk_length: items in a chunk.
        extra_names: the policy's extra outputs that priorities are computed from.
        initial_priorities: computes the initial priorities.
        extra_columns: the policy's extra outputs at a transition's first observation that are
            stored in the item.
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
        extra_columns: Sequence[Column] = (),
    ) -> None:
        self._stack = spec.frame_stack
        self._observation = ObservationColumns(spec)
        self._action_dtype = np.dtype(spec.action_column.dtype)
        self._n_step = n_step
        self._discounts = np.array([discount**k for k in range(n_step + 1)])
        self._chunk_length = chunk_length
        self._extra_names = extra_names
        self._extra_columns = extra_columns
        self._priorities = initial_priorities
        self._steps = _Steps(num_envs, max(0, self._stack - 1))
        self._untaken = np.zeros(num_envs, dtype=np.int64)
        """`[E]`, the first row whose transition is not in a chunk yet."""
        self._pending = np.zeros(num_envs, dtype=np.int64)
        """`[E]`, number of transitions without their bootstrap observation yet."""
        self._finished = np.zeros(num_envs, dtype=np.int64)
        """`[E]`, number of complete transitions that are not in a chunk yet."""
        self._no_value = np.zeros(num_envs, dtype=np.bool_)
        """`[E]`, the last step was a termination or a lost life."""
        self._age = np.zeros(num_envs, dtype=np.int64)
        """`[E]`, observations of the current episode so far."""

    def add(self, step: VectorStep) -> list[Chunk]:
        """Add one step of all environments; returns the chunks that it completed."""
        begun = ~step.ignored
        ended = step.ignored | self._no_value
        self._no_value = (step.terminated | step.life_lost) & begun
        self._age += 1
        self._record(step, begun, ended)
        self._age[step.ignored] = 0
        completed = np.where(ended, self._pending, self._pending == self._n_step)
        self._pending += begun - completed
        self._finished += completed
        if step.ignored.any():  # else environments that fail at each first step would fill memory
            self._untaken[(self._pending == 0) & (self._finished == 0)] = self._steps.rows
            self._forget([])
        if self._finished.max() < self._chunk_length:
            return []
        full = np.flatnonzero(self._finished >= self._chunk_length).tolist()
        return self._forget([self._take(env) for env in full])

    def _record(self, step: VectorStep, begun: Bools, ended: Bools) -> None:
        row = {
            "action": step.actions,
            "reward": step.rewards,
            "begun": begun,
            "ended": ended,
            "no_value": self._no_value,
            "age": self._age,
            LEARNER_STEP: np.array([step.learner_step]),
            **{name: step.extras[name] for name in self._extra_names},
            **{column.name: step.extras[column.name] for column in self._extra_columns},
        }
        if self._stack:
            for kept, frame in zip(self._steps.frames, self._observation.frames(step.observations)):
                kept.append(frame)
        row.update(self._observation.columns(step.observations))
        self._steps.append(row)

    def flush(self) -> list[Chunk]:
        """Return the complete transitions that are not yet in a chunk."""
        chunks = []
        for env in np.flatnonzero(self._finished).tolist():
            while self._finished[env]:
                chunks.append(self._take(env))
        return self._forget(chunks)

    def _forget(self, chunks: list[Chunk]) -> list[Chunk]:
        self._untaken -= self._steps.forget(int(self._untaken.min()))
        return chunks

    def _take(self, env: int) -> Chunk:
        """Make a chunk of the oldest finished transitions, 1 to `chunk_length`."""
        count = min(int(self._finished[env]), self._chunk_length)
        untaken = int(self._untaken[env])
        begins = untaken + np.flatnonzero(self._steps.of("begun", env)[untaken:])[:count]
        ends = self._bootstraps(env, begins)
        self._finished[env] -= count
        self._untaken[env] = begins[-1] + 1
        columns = self._columns(env, begins, ends)
        extras = {name: self._steps.of(name, env) for name in self._extra_names}
        initial = self._priorities(
            columns,
            {name: values[begins].astype(np.float64) for name, values in extras.items()},
            {name: values[ends].astype(np.float64) for name, values in extras.items()},
        )
        if not self._stack:
            return Chunk(columns, initial)
        padding = np.maximum(0, self._stack - self._steps.of("age", env)[begins])
        first = begins - (self._stack - 1) + padding
        return Chunk(columns, initial, cut_frames(self._steps.frames[env], first, ends, padding))

    def _bootstraps(self, env: int, begins: Rows) -> Rows:
        """Rows of the bootstrap observations of the transitions that begin in rows `begins`."""
        (ended,) = np.nonzero(self._steps.of("ended", env))
        if not len(ended):
            return begins + self._n_step
        after = np.searchsorted(ended, begins, side="right")
        never = self._steps.rows + self._n_step
        ends: Rows = np.minimum(begins + self._n_step, np.append(ended, never)[after])
        return ends

    def _columns(self, env: int, begins: Rows, ends: Rows) -> Arrays:
        rewards, lengths = self._steps.of("reward", env), ends - begins
        returns = np.zeros(len(begins))
        for k in range(self._n_step):
            # Shorter transitions have no k-th reward: read a valid row and mask it.
            kth_rewards = rewards[np.minimum(begins + k, ends - 1)]
            returns += self._discounts[k] * np.where(k < lengths, kth_rewards, 0.0)
        no_value = self._steps.of("no_value", env)[ends - 1]
        columns: Arrays = {
            "action": self._steps.of("action", env)[begins].astype(self._action_dtype),
            "n_step_return": returns.astype(np.float32),
            "discount": np.where(no_value, 0.0, self._discounts[lengths]).astype(np.float32),
            LEARNER_STEP: self._steps.of(LEARNER_STEP, env)[begins].astype(np.int64),
        }
        for column in self._extra_columns:
            values = self._steps.of(column.name, env)[begins]
            columns[column.name] = values.astype(column.dtype)
        for name in self._observation.names:
            observations = self._steps.of(name, env)
            columns[name] = observations[begins]
            columns[f"next_{name}"] = observations[ends]
        return columns
