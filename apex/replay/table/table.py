"""The one table that serves every algorithm: items with ids and priorities, bounded and limited."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from apex.config.sections import Config
from apex.data.chunks import Chunk, FrameRanges, Samples, good_priorities
from apex.data.schema import Arrays, Schema
from apex.replay.table.rate_limiter import RateLimiter
from apex.replay.table.selectors import Fifo, Selector, make_selector
from apex.replay.table.store import Store

Ids = npt.NDArray[np.int64]
NO_ITEM = -1


@dataclass
class TableCounters:
    """What happened to a table's items since it was made."""

    inserted: int = 0
    sampled: int = 0
    evicted: int = 0
    """Removed by age to make room."""
    exhausted: int = 0
    """Removed after `max_times_sampled` samples."""
    updated_priorities: int = 0
    stale_priorities: int = 0
    """Updates for items that were gone."""
    refused_priorities: int = 0
    """Updates that were not finite or negative."""


@dataclass(frozen=True)
class TableState:
    """What a table knows of its items beside their data: `[N]` each, by rising id."""

    next_id: int
    item_ids: Ids
    priorities: npt.NDArray[np.float64]
    """Before the exponent."""
    times_sampled: npt.NDArray[np.int64]
    """Zeros where the table does not count them."""


class Table:
    """Holds at most `capacity` items; the oldest makes room for the newest.

    Item ids are 64-bit, rise by one, and are never used again; an item with id i lies in slot
    `i mod capacity`. Everything that names an item later names its id, so that it can never hit
    another item that took the slot.

    Args:
        schema: the columns of an item.
        capacity: most items.
        selector: chooses the items of a batch.
        limiter: says whether inserting and sampling may go on.
        max_times_sampled: samples after which an item is removed; 0: no limit.
        rng: for sampling.
        first_id: of the first item; above all ids that another table of this run has given.
            Those that `restore` brings keep their own.
    """

    def __init__(
        self,
        schema: Schema,
        capacity: int,
        selector: Selector,
        limiter: RateLimiter,
        max_times_sampled: int,
        rng: np.random.Generator,
        first_id: int = 0,
    ) -> None:
        self.schema = schema
        self.capacity = capacity
        self.limiter = limiter
        self.counters = TableCounters()
        self._selector = selector
        self._store = Store(schema, capacity)
        self._max_times_sampled = max_times_sampled
        self.is_queue = bool(max_times_sampled) and isinstance(selector, Fifo)
        """Whether items leave in the order in which they came."""
        self._rng = rng
        self._ids = np.full(capacity, NO_ITEM, dtype=np.int64)
        self._times_sampled = np.zeros(capacity if max_times_sampled else 0, dtype=np.int64)
        self._next_id = first_id
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def nbytes(self) -> int:
        """Bytes of the items' data."""
        return self._store.nbytes

    @property
    def next_id(self) -> int:
        """The id of the next item."""
        return self._next_id

    @property
    def max_chunk(self) -> int:
        """The longest chunk that could ever be inserted."""
        return min(self.capacity, self.limiter.max_insert)

    def can_insert(self, count: int) -> bool:
        """Whether the limiter lets `count` items in now."""
        return self.limiter.can_insert(count)

    def can_sample(self, count: int) -> bool:
        """Whether the limiter lets a batch of `count` out now."""
        if self._max_times_sampled and self._size < count:
            return False
        return self._size > 0 and self.limiter.can_sample(count, self._size)

    def insert(self, chunk: Chunk) -> Ids:
        """Insert the items of a chunk that `Chunk.check` has passed.

        Returns:
            `[M] int64`, their ids.
        """
        ids = np.arange(self._next_id, self._next_id + len(chunk), dtype=np.int64)
        slots = ids % self.capacity
        taken = slots[self._ids[slots] != NO_ITEM]
        if len(taken):
            self._remove(taken)
            self.counters.evicted += len(taken)
        self._put(ids, chunk)
        self._next_id += len(chunk)
        self.limiter.inserted += len(chunk)
        self.counters.inserted += len(chunk)
        return ids

    def sample(self, count: int) -> Samples:
        """Draw a batch.

        An item may be drawn twice unless the selector is FIFO, but never more often than
        `max_times_sampled` allows, of this batch and those before.

        Raises:
            EmptyTableError: no item has a priority above zero, or those that have may not be drawn
                so often; the table is as it was then.
        """
        slots, probabilities = self._selector.sample(count, self._rng)
        if self._max_times_sampled:
            left = self._max_times_sampled - self._times_sampled[slots]
            allowed = _earlier(slots) < left
            if not allowed.all():
                slots, probabilities = self._draw_others(slots, probabilities, allowed)
        columns, frames = self._store.get(slots)
        samples = Samples(self._ids[slots], probabilities, columns, frames)
        self.limiter.sampled += len(slots)
        self.counters.sampled += len(slots)
        if self._max_times_sampled:
            self._retire(slots)
        return samples

    def _draw_others(
        self,
        slots: npt.NDArray[np.int64],
        probabilities: npt.NDArray[np.float64],
        allowed: npt.NDArray[np.bool_],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Draw again what was drawn too often, from the items that still may be drawn.

        Args:
            slots, probabilities: of a batch, `[B]` each.
            allowed: `[B]`, which draws are kept.

        Returns:
            Both, with other draws and their probabilities in place of those.
        """
        slots, probabilities = slots.copy(), probabilities.copy()
        exhausted: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []
        try:
            while not allowed.all():
                finished = np.unique(slots[~allowed])
                exhausted.append((finished, self._selector.priorities(finished)))
                self._selector.delete(finished)
                others, chances = self._selector.sample(int((~allowed).sum()), self._rng)
                slots[~allowed], probabilities[~allowed] = others, chances
                left = self._max_times_sampled - self._times_sampled[slots]
                allowed = _earlier(slots) < left
        finally:  # whoever retires them expects them there
            for finished, priorities in exhausted:
                self._selector.insert(finished, priorities)
        return slots, probabilities

    def _retire(self, slots: npt.NDArray[np.int64]) -> None:
        np.add.at(self._times_sampled, slots, 1)
        drawn = np.unique(slots)
        finished = drawn[self._times_sampled[drawn] >= self._max_times_sampled]
        self._remove(finished)
        self.counters.exhausted += len(finished)

    def update_priorities(self, item_ids: Ids, priorities: npt.NDArray[np.float64]) -> None:
        """Give items new priorities; items that are gone and bad priorities are counted.

        Args:
            item_ids: `[B] int64`; of an id that is named twice the last priority holds.
            priorities: `[B] float64`, before the exponent.
        """
        good = good_priorities(priorities)
        slots = item_ids % self.capacity
        present = (self._ids[slots] == item_ids) & (item_ids >= 0)
        self.counters.refused_priorities += int((~good).sum())
        self.counters.stale_priorities += int((good & ~present).sum())
        apply = good & present
        if apply.any():
            self._selector.update(slots[apply], priorities[apply])
            self.counters.updated_priorities += int(apply.sum())

    @property
    def oldest_id(self) -> int:
        """The smallest id of an item; of an empty table the next one that it will give."""
        present = self._ids[self._ids != NO_ITEM]
        return int(present.min()) if len(present) else self._next_id

    def contents(self, item_ids: Ids) -> tuple[Arrays, FrameRanges | None]:
        """Columns and frames of items that are there, `[B, ...]` each."""
        return self._store.get(item_ids % self.capacity)

    def state(self) -> TableState:
        """The items' ids, priorities and counts of now."""
        ids = np.sort(self._ids[self._ids != NO_ITEM])
        slots = ids % self.capacity
        times = self._times_sampled[slots] if self._max_times_sampled else np.zeros_like(ids)
        return TableState(self._next_id, ids, self._selector.priorities(slots), times)

    def restore(
        self,
        chunks: Sequence[tuple[int, Chunk]],
        state: TableState | None,
        progress: Callable[[], None] = lambda: None,
        *,
        oldest_id: int = 0,
    ) -> None:
        """Fill an empty table with items that another had.

        Of two items for one slot the later one is taken, as it would have evicted the other.

        Args:
            chunks: checked ones with the id of their first item, in the order of their ids.
            state: of the other table at some time; of items that were in it then, those that it
                does not name are gone, and those that it names have its priorities. Items that
                came later have their initial ones.
            progress: called at each chunk.
            oldest_id: items before it are gone.
        """
        owners = np.full(self.capacity, NO_ITEM, dtype=np.int64)
        for first_id, chunk in chunks:
            ids = np.arange(first_id, first_id + len(chunk), dtype=np.int64)
            owners[ids % self.capacity] = ids
        if state is not None:
            known = np.isin(owners, state.item_ids)
            owners[(owners < state.next_id) & ~known] = NO_ITEM
        owners[owners < oldest_id] = NO_ITEM
        owners[self._out_of_turn(owners)] = NO_ITEM
        for first_id, chunk in chunks:
            ids = np.arange(first_id, first_id + len(chunk), dtype=np.int64)
            progress()
            here = owners[ids % self.capacity] == ids
            if here.any():
                part = chunk if here.all() else chunk.take(here)
                self._put(ids[here], part)
        if state is not None:
            self._restore_state(state)

    def rebase_limiter(self) -> None:
        """Let both sides go on from here, after `restore`."""
        times = self._max_times_sampled or math.inf
        self.limiter.rebase(self._size, self._size * times if self._size else 0.0)

    def _out_of_turn(self, owners: Ids) -> Ids:
        """Slots whose item is older than one that is to be evicted before it.

        Such an item had been evicted by one that is missing now (not taken by a full disk, or
        damaged). It would outlive newer ones by a whole round.
        """
        slots: Ids = (self._next_id + np.arange(self.capacity)) % self.capacity
        ids = owners[slots]  # in the order in which they will be evicted
        out_of_turn: Ids = slots[(ids != NO_ITEM) & (ids < np.maximum.accumulate(ids))]
        return out_of_turn

    def _put(self, ids: Ids, chunk: Chunk) -> None:
        """Items to free slots."""
        slots = ids % self.capacity
        self._store.put(slots, chunk)
        self._selector.insert(slots, chunk.priorities)
        self._ids[slots] = ids
        if self._max_times_sampled:
            self._times_sampled[slots] = 0
        self._size += len(chunk)

    def _restore_state(self, state: TableState) -> None:
        slots = state.item_ids % self.capacity
        here = self._ids[slots] == state.item_ids
        self._selector.update(slots[here], state.priorities[here])
        if self._max_times_sampled:
            self._times_sampled[slots[here]] = state.times_sampled[here]

    def _remove(self, slots: npt.NDArray[np.int64]) -> None:
        self._selector.delete(slots)
        self._store.delete(slots)
        self._ids[slots] = NO_ITEM
        self._size -= len(slots)


def _earlier(slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How often each slot was drawn before within its batch, `[B]`."""
    order = np.argsort(slots, kind="stable")
    in_order = slots[order]
    begins = np.searchsorted(in_order, in_order)
    earlier = np.empty_like(slots)
    earlier[order] = np.arange(len(slots)) - begins
    return earlier


def make_table(config: Config, schema: Schema, first_id: int, starts: int = 0) -> Table:
    """The table that a configuration asks for.

    Args:
        config: of the run.
        schema: of its items.
        first_id: of the first item.
        starts: of the replay server before this one: none repeats the draws of another.
    """
    replay = config.replay
    return Table(
        schema,
        replay.capacity,
        make_selector(replay.selector, replay.capacity, replay.priority_exponent),
        RateLimiter(
            replay.min_size, replay.samples_per_insert, replay.tolerance or config.min_tolerance
        ),
        replay.max_times_sampled,
        np.random.default_rng((config.run.seed, starts)),
        first_id=first_id,
    )
