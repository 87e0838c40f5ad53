"""Sequences: items of many consecutive steps of one environment, across its episodes' ends.

A sequence has L rows. A row is one observation, what was done there and what came of it; the last
row is there for its observation, from which values are bootstrapped. The columns of an item:

    observation      [L, ...]  only without frames; with frames they are the item's frames
    action           [L, *action shape] int32, or float32 where actions are continuous
    reward           [L] float32, of the action
    discount         [L] float32: gamma, or 0 after a termination or a lost life
    is_first         [L] uint8: the row begins an episode
    is_last          [L] uint8: the final observation of a truncated episode. Nothing was done
                     there: action, reward and discount mean nothing, its value is bootstrapped
    last_action      like action, last_reward float32: of the row before the first; 0 at a start
    learner_step     of the parameters that acted in the first row

and those that the algorithm asks for. The final observation of a terminated episode has no value
and makes no row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from apex.acting.accumulator import VectorStep
from apex.acting.frame_window import FrameRange, FrameWindow
from apex.data.chunks import Chunk
from apex.data.schema import LEARNER_STEP, Array, Arrays, Column, FramesColumn, Schema
from apex.envs.spec import EnvSpec

SequencePriorities = Callable[[Arrays, Arrays], npt.NDArray[np.float64]]
"""The columns of M sequences, and the policy's extras in each row, `[M, L, ...]` each, to `[M]`;
without those that are stored for the first row alone."""


@dataclass(frozen=True)
class SequenceLayout:
    """What a sequence consists of.

    Args:
        length: L, its rows.
        period: rows from the beginning of one sequence to that of the next.
        discount: gamma.
        row_extras: those of the policy's extras that are stored for each row, with the shape of
            one row's.
        first_extras: those that are stored for the first row alone.
    """

    length: int
    period: int
    discount: float
    row_extras: tuple[Column, ...] = ()
    first_extras: tuple[Column, ...] = ()

    def schema(self, spec: EnvSpec) -> Schema:
        """The columns of an item, as above."""
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
        if spec.frame_stack:
            most = spec.frame_stack - 1 + self.length
            return Schema(tuple(columns), FramesColumn(spec.observation_shape, most))
        shape = (*rows, *spec.observation_shape)
        return Schema((*columns, Column("observation", spec.observation_dtype, shape)))


class _Row(NamedTuple):
    action: Array
    reward: float
    discount: float
    is_first: bool
    is_last: bool
    learner_step: int
    observation: Array | None
    extras: tuple[Any, ...]
    stack_begin: tuple[int, int]
    frames_end: int


@dataclass
class _Sequence:
    """A sequence that is complete."""

    rows: list[_Row]
    before: _Row | None
    """The row before the first one, where that begins no episode."""


class _EnvSequences:
    """The sequences of one environment."""

    def __init__(self, spec: EnvSpec, layout: SequenceLayout, chunk_length: int) -> None:
        self._layout = layout
        self._chunk_length = chunk_length
        self._no_action = spec.no_actions(1)[0]
        self._action_dtype = spec.action_column.dtype
        self._window = FrameWindow(spec.frame_stack) if spec.frame_stack else None
        self._rows: list[_Row] = []
        """From the row before the unfinished sequence on."""
        self._before = 0
        """Rows in `_rows` before the unfinished sequence: at most one."""
        self._starting = True
        self._ended = False
        self.finished: list[_Sequence] = []

    def add(self, step: VectorStep, env: int, extras: tuple[Any, ...]) -> bool:
        """Take one step of the environment; whether a chunk is complete."""
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
        observation, stack_begin, end = None, (0, 0), 0
        if self._window is None:
            observation = step.observations[env].copy()
        else:
            if self._starting:
                self._window.begin_episode()
            self._window.append(step.observations[env])
            stack_begin, end = self._window.stack_begin(), self._window.end
        dead = is_last or step.terminated[env] or step.life_lost[env]
        row = _Row(
            step.actions[env].copy(),
            0.0 if is_last else float(step.rewards[env]),
            0.0 if dead else self._layout.discount,
            self._starting,
            is_last,
            step.learner_step,
            observation,
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
        """The oldest finished sequences, at least one and at most `chunk_length`, as a chunk."""
        taken, self.finished = (
            self.finished[: self._chunk_length],
            self.finished[self._chunk_length :],
        )
        columns = _columns(taken, self._no_action, self._action_dtype)
        first = {column.name: column.dtype for column in self._layout.first_extras}
        extras = {}
        for k, name in enumerate(extra_names):
            if name in first:
                values = np.stack([one.rows[0].extras[k] for one in taken])
                columns[name] = values.astype(first[name])
            else:
                extras[name] = np.array([[row.extras[k] for row in one.rows] for one in taken])
        initial = priorities(columns, extras)
        for column in self._layout.row_extras:
            columns[column.name] = extras[column.name].astype(column.dtype)
        if self._window is None:
            return Chunk(columns, initial)
        ranges = [
            FrameRange(one.rows[0].stack_begin[0], one.rows[-1].frames_end,
                       one.rows[0].stack_begin[1])
            for one in taken
        ]  # fmt: skip
        cut = self._window.cut(ranges)
        rest = self.finished[0].rows if self.finished else self._rows
        self._window.forget(rest[0].stack_begin[0] if rest else None)
        return Chunk(columns, initial, cut)


def _columns(sequences: Sequence[_Sequence], no_action: Array, action_dtype: str) -> Arrays:
    """The columns that every sequence has."""
    fields = {"action": action_dtype, "reward": "float32", "discount": "float32",
              "is_first": "uint8", "is_last": "uint8"}  # fmt: skip
    columns: Arrays = {
        name: np.array([[getattr(row, name) for row in one.rows] for one in sequences], dtype)
        for name, dtype in fields.items()
    }
    before = [one.before for one in sequences]
    columns["last_action"] = np.array(
        [row.action if row else no_action for row in before], action_dtype
    )
    columns["last_reward"] = np.array([row.reward if row else 0.0 for row in before], np.float32)
    columns[LEARNER_STEP] = np.array([one.rows[0].learner_step for one in sequences], np.int64)
    if sequences[0].rows[0].observation is not None:
        columns["observation"] = np.array(
            [[row.observation for row in one.rows] for one in sequences]
        )
    return columns


class SequenceAccumulator:
    """Sequences of E environments.

    Args:
        spec: of the environment.
        num_envs: E.
        layout: what a sequence consists of.
        chunk_length: sequences in a chunk.
        extra_names: the policy's extras that are stored or that priorities are computed from.
        initial_priorities: computes them.
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
        """Take one step of all environments; gives the chunks that it completed."""
        extras = [step.extras[name] for name in self._extra_names]
        full = [
            one
            for env, one in enumerate(self._envs)
            if one.add(step, env, tuple(extra[env] for extra in extras))
        ]
        return [self._take(env) for env in full]

    def flush(self) -> list[Chunk]:
        """The sequences that are complete but not yet in a chunk."""
        chunks = []
        for env in self._envs:
            while env.finished:
                chunks.append(self._take(env))
        return chunks

    def _take(self, env: _EnvSequences) -> Chunk:
        return env.take_chunk(self._extra_names, self._priorities)
