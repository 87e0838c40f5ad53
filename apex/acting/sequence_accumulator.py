"""Sequences: items of L consecutive steps of one environment, across episode boundaries.

A sequence has L rows. A row is one observation, the action taken there, and its result. The last
row provides the observation to bootstrap from. The columns of an item:

    observation      [L, ...]; absent if the observation is an image, whose frames are stored
                     separately. An observation of parts has a column `observation.NAME` for each
                     part that is not an image
    action           [L, *action shape] int32, or float32 if actions are continuous
    reward           [L] float32, the reward of the action
    discount         [L] float32: gamma, or 0 after a termination or a lost life
    is_first         [L] uint8: the row is the first of an episode
    is_last          [L] uint8: the row is the final observation of a truncated episode, to
                     bootstrap from. It has no action: ignore its action, reward and discount
    last_action      action of the row before the first row; 0 if an episode begins there
    last_reward      float32, reward of that row; 0 if an episode begins there
    learner_step     int64, learner step of the parameters that acted in the first row

and the algorithm's own columns. The final observation of a terminated episode has no value, so it
has no row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from apex.acting.accumulator import VectorStep
from apex.acting.frame_window import FrameRange, FrameWindow
from apex.acting.observation_columns import (
    ObservationColumns,
    frames_schema,
    observation_schema,
)
from apex.data.chunks import Chunk
from apex.data.schema import LEARNER_STEP, Array, Arrays, Column, Schema
from apex.envs.spec import EnvSpec

SequencePriorities = Callable[[Arrays, Arrays], npt.NDArray[np.float64]]
"""Computes `[M]` priorities from the columns of M sequences and the policy's extra outputs in each
row, `[M, L, ...]` each. Extra outputs stored only for the first row are among the columns."""


@dataclass(frozen=True)
class SequenceLayout:
    """Length, period and columns of the sequences.

    Args:
        length: L, rows of a sequence.
        period: rows from the first row of one sequence to the first row of the next.
        discount: gamma, per environment step.
        row_extras: the policy's extra outputs that are stored for each row; their shapes are
            those of one row.
        first_extras: the policy's extra outputs that are stored for the first row only.
    """

    length: int
    period: int
    discount: float
    row_extras: tuple[Column, ...] = ()
    first_extras: tuple[Column, ...] = ()

    def schema(self, spec: EnvSpec) -> Schema:
        """The schema of an item; the module's docstring describes its columns."""
        rows, action = (self.length,), spec.action_column
        columns = [
            Column("action", action.dtype, (*rows, *action.shape)),
            Column("reward", "float32", rows),
            Column("discount", "float32", rows),
            Column("is_first", "uint8", rows),
            Column("is_last", "uint8", rows),
            Column("last_action", action.dtype, action.shape),
            Column("last_reward", "float32"),
            Column(LEARNER_STEP, "int64"),
            *(Column(c.name, c.dtype, (*rows, *c.shape)) for c in self.row_extras),
            *self.first_extras,
        ]
        frames = frames_schema(spec, spec.frame_stack - 1 + self.length)
        return Schema((*columns, *observation_schema(spec, rows)), frames)


class _Row(NamedTuple):
    action: Array
    reward: float
    discount: float
    is_first: bool
    is_last: bool
    learner_step: int
    observation: tuple[Array, ...]
    """The columns of the observation, in their order."""
    extras: tuple[Any, ...]
    stack_begin: tuple[int, int]
    frames_end: int


@dataclass
class _Sequence:
    """A complete sequence."""

    rows: list[_Row]
    before: _Row | None
    """The row before the first one; None if an episode begins with the first one."""


class _EnvSequences:
    """The sequences of one environment."""

    def __init__(self, spec: EnvSpec, layout: SequenceLayout, chunk_length: int) -> None:
        self._layout = layout
        self._observation = ObservationColumns(spec)
        self._chunk_length = chunk_length
        self._no_action = spec.no_actions(1)[0]
        self._action_dtype = spec.action_column.dtype
        self._window = FrameWindow(spec.frame_stack) if spec.frame_stack else None
        self._rows: list[_Row] = []
        """The rows of the unfinished sequence, and the row before it if there is one."""
        self._before = 0
        """Number of rows in `_rows` before the unfinished sequence: 0 or 1."""
        self._starting = True
        self._ended = False
        self.finished: list[_Sequence] = []

    def add(self, step: VectorStep, env: int, extras: tuple[Any, ...]) -> bool:
        """Add one step of the environment; returns whether a chunk is complete."""
        if step.ignored[env]:
            if self._rows and not self._ended:
                self._append(step, env, extras, is_last=True)
            self._starting = True
        else:
            self._append(step, env, extras, is_last=False)
            self._starting, self._ended = False, bool(step.terminated[env])
        return len(self.finished) >= self._chunk_length

    def _append(
        self, step: VectorStep, env: int, extras: tuple[Any, ...], *, is_last: bool
    ) -> None:
        stack_begin, end = (0, 0), 0
        if self._window is not None:
            if self._starting:
                self._window.begin_episode()
            self._window.append(self._observation.frame(step.observations, env))
            stack_begin, end = self._window.stack_begin(), self._window.end
        no_value = is_last or step.terminated[env] or step.life_lost[env]
        row = _Row(
            step.actions[env].copy(),
            0.0 if is_last else float(step.rewards[env]),
            0.0 if no_value else self._layout.discount,
            self._starting,
            is_last,
            step.learner_step,
            self._observation.row(step.observations, env),
            extras,
            stack_begin,
            end,
        )
        self._rows.append(row)
        if len(self._rows) - self._before == self._layout.length:
            self._finish()

    def _finish(self) -> None:
        rows = self._rows[self._before :]
        before = self._rows[0] if self._before and not rows[0].is_first else None
        self.finished.append(_Sequence(rows, before))
        del self._rows[: self._before + self._layout.period - 1]
        self._before = 1

    def take_chunk(self, extra_names: Sequence[str], priorities: SequencePriorities) -> Chunk:
        """Remove the oldest finished sequences, 1 to `chunk_length`, and return them as a chunk."""
        taken, self.finished = (
            self.finished[: self._chunk_length],
            self.finished[self._chunk_length :],
        )
        columns = _columns(taken, self._no_action, self._action_dtype)
        for k, name in enumerate(self._observation.names):
            rows = [[row.observation[k] for row in sequence.rows] for sequence in taken]
            columns[name] = np.array(rows)
        first = {column.name: column.dtype for column in self._layout.first_extras}
        extras = {}
        for k, name in enumerate(extra_names):
            if name in first:
                values = np.stack([sequence.rows[0].extras[k] for sequence in taken])
                columns[name] = values.astype(first[name])
            else:
                extras[name] = np.array(
                    [[row.extras[k] for row in sequence.rows] for sequence in taken]
                )
        initial = priorities(columns, extras)
        for column in self._layout.row_extras:
            columns[column.name] = extras[column.name].astype(column.dtype)
        if self._window is None:
            return Chunk(columns, initial)
        ranges = [
            FrameRange(sequence.rows[0].stack_begin[0], sequence.rows[-1].frames_end,
                       sequence.rows[0].stack_begin[1])
            for sequence in taken
        ]  # fmt: skip
        frames = self._window.cut(ranges)
        remaining = self.finished[0].rows if self.finished else self._rows
        self._window.forget(remaining[0].stack_begin[0] if remaining else None)
        return Chunk(columns, initial, frames)


def _columns(sequences: Sequence[_Sequence], no_action: Array, action_dtype: str) -> Arrays:
    """The columns that sequences of every algorithm have."""
    fields = {"action": action_dtype, "reward": "float32", "discount": "float32",
              "is_first": "uint8", "is_last": "uint8"}  # fmt: skip
    columns: Arrays = {
        name: np.array([[getattr(row, name) for row in each.rows] for each in sequences], dtype)
        for name, dtype in fields.items()
    }
    before = [sequence.before for sequence in sequences]
    columns["last_action"] = np.array(
        [row.action if row else no_action for row in before], action_dtype
    )
    columns["last_reward"] = np.array([row.reward if row else 0.0 for row in before], np.float32)
    columns[LEARNER_STEP] = np.array([each.rows[0].learner_step for each in sequences], np.int64)
    return columns


class SequenceAccumulator:
    """Turns steps of E environments into sequences.

    Args:
        spec: specification of the environments.
        num_envs: E.
        layout: length, period and columns of the sequences.
        chunk_length: sequences in a chunk.
        extra_names: the policy's extra outputs that are stored or used for initial priorities.
        initial_priorities: computes the initial priorities.
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int,
        layout: SequenceLayout,
        chunk_length: int,
        extra_names: Sequence[str],
        initial_priorities: SequencePriorities,
    ) -> None:
        self._envs = [_EnvSequences(spec, layout, chunk_length) for _ in range(num_envs)]
        self._extra_names = extra_names
        self._priorities = initial_priorities

    def add(self, step: VectorStep) -> list[Chunk]:
        """Add one step of all environments; returns the chunks that it completed."""
        extras = [step.extras[name] for name in self._extra_names]
        full = [
            sequences
            for env, sequences in enumerate(self._envs)
            if sequences.add(step, env, tuple(extra[env] for extra in extras))
        ]
        return [self._take(env) for env in full]

    def flush(self) -> list[Chunk]:
        """Return the complete sequences that are not yet in a chunk."""
        chunks = []
        for env in self._envs:
            while env.finished:
                chunks.append(self._take(env))
        return chunks

    def _take(self, env: _EnvSequences) -> Chunk:
        return env.take_chunk(self._extra_names, self._priorities)
