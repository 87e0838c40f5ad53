"""Replay table of every algorithm: items with ids and priorities, bounded and rate-limited."""

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
    """Counts of what happened to a table's items since it was created."""

    inserted: int = 0
    sampled: int = 0
    evicted: int = 0
    """Oldest items removed to make room."""
    exhausted: int = 0
    """Items removed after `max_times_sampled` samples."""
    updated_priorities: int = 0
    stale_priorities: int = 0
    """Updates for items that had been removed."""
    refused_priorities: int = 0
    """Updates that were negative, above 1e12 or not finite."""


@dataclass(frozen=True)
class TableState:
    """Ids, priorities and sample counts of a table's items: `[N]` each, in order of id."""

    next_id: int
    """Id that the next inserted item would have had."""
    item_ids: Ids
    priorities: npt.NDArray[np.float64]
    """Before the exponent is applied."""
    times_sampled: npt.NDArray[np.int64]
    """Zeros if `max_times_sampled` is 0."""


class Table:
    """Table of at most `capacity` items; a new item replaces the oldest one of a full table.

    Item ids are 64-bit, increase by one, and are never reused. The item with id i is in slot
    `i mod capacity`. Later references to an item use its id, so that they never hit another item
    that has taken the slot.

    Args:
        schema: the columns and frames of an item.
        capacity: maximum number of items.
        selector: chooses the items of a batch.
        limiter: decides whether inserting and sampling may proceed.
        max_times_sampled: samples after which an item is removed; 0: no limit.
        rng: random numbers for sampling.
        first_id: id of the first inserted item, above all ids of earlier tables of this run.
            Items added by `restore` keep their ids.
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
        """Whether items are served and removed in the order of insertion."""
        self._rng = rng
        self._ids = np.full(capacity, NO_ITEM, dtype=np.int64)
        self._times_sampled = np.zeros(capacity if max_times_sampled else 0, dtype=np.int64)
        self._next_id = first_id
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def nbytes(self) -> int:
        """Size of the items' data in bytes."""
        return self._store.nbytes

    @property
    def next_id(self) -> int:
        """Id of the next inserted item."""
        return self._next_id

    @property
    def max_chunk(self) -> int:
        """Length of the longest chunk that can be inserted, in items."""
        return min(self.capacity, self.limiter.max_insert)

    def can_insert(self, count: int) -> bool:
        """Whether the limiter allows inserting `count` items now."""
        return self.limiter.can_insert(count)

    def can_sample(self, count: int) -> bool:
        """Whether a batch of `count` items can be sampled now."""
        if self._max_times_sampled and self._size < count:
            return False
        return self._size > 0 and self.limiter.can_sample(count, self._size)

    def insert(self, chunk: Chunk) -> Ids:
        """Insert the items of a chunk that has passed `Chunk.check`.

        Returns:
            `[M] int64`, the ids of the items.
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

        An item may be drawn twice unless the selector is FIFO, but at most `max_times_sampled`
        times over all batches.

        Raises:
            EmptyTableError: no item has a priority > 0, or those that have one do not allow
                `count` more samples. The table is unchanged.
        """
        slots, probabilities = self._selector.sample(count, self._rng)
        if self._max_times_sampled:
            left = self._max_times_sampled - self._times_sampled[slots]
            allowed = _earlier_draws(slots) < left
            if not allowed.all():
                slots, probabilities = self._redraw(slots, probabilities, allowed)
        columns, frames = self._store.get(slots)
        samples = Samples(self._ids[slots], probabilities, columns, frames)
        self.limiter.sampled += len(slots)
        self.counters.sampled += len(slots)
        if self._max_times_sampled:
            self._retire(slots)
        return samples

    def _redraw(
        self,
        slots: npt.NDArray[np.int64],
        probabilities: npt.NDArray[np.float64],
        allowed: npt.NDArray[np.bool_],
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Replace draws of items that were drawn too often.

        Args:
            slots, probabilities: the draws of a batch, `[B]` each.
            allowed: `[B]`, which draws to keep.

        Returns:
            Slots and probabilities, `[B]` each, with the other draws replaced.
        """
        slots, probabilities = slots.copy(), probabilities.copy()
        exhausted: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]] = []
        try:
            while not allowed.all():
                finished = np.unique(slots[~allowed])
                exhausted.append((finished, self._selector.priorities(finished)))
                self._selector.delete(finished)
                redrawn = self._selector.sample(int((~allowed).sum()), self._rng)
                slots[~allowed], probabilities[~allowed] = redrawn
                left = self._max_times_sampled - self._times_sampled[slots]
                allowed = _earlier_draws(slots) < left
        finally:  # `_retire` removes them from the selector
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
        """Set the priorities of items. Removed items and invalid priorities are only counted.

        Args:
            item_ids: `[B] int64`. If an id is repeated, its last priority applies.
            priorities: `[B] float64`, before the exponent is applied.
        """
        good = good_priorities(priorities)
        slots = item_ids % self.capacity
        apply = good & (self._ids[slots] == item_ids) & (item_ids >= 0)
        applied = int(np.count_nonzero(apply))
        if applied < len(item_ids):
            refused = len(item_ids) - int(np.count_nonzero(good))
            self.counters.refused_priorities += refused
            self.counters.stale_priorities += len(item_ids) - refused - applied
            slots, priorities = slots[apply], priorities[apply]
        if applied:
            self._selector.update(slots, priorities)
            self.counters.updated_priorities += applied

    @property
    def oldest_id(self) -> int:
        """Smallest id of an item in the table, or `next_id` if the table is empty."""
        present = self._ids[self._ids != NO_ITEM]
        return int(present.min()) if len(present) else self._next_id

    def contents(self, item_ids: Ids) -> tuple[Arrays, FrameRanges | None]:
        """Columns and frames of items that are in the table, `[B, ...]` each."""
        return self._store.get(item_ids % self.capacity)

    def state(self) -> TableState:
        """Current ids, priorities and sample counts of the items."""
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
        """Fill an empty table with the items of an earlier table.

        Of two items for one slot, the later one is kept: it would have evicted the other.

        Args:
            chunks: pairs of a first item id and a checked chunk, in order of id.
            state: a saved state of the earlier table. Items from before the save that it does
                not list are dropped; those that it lists get its priorities and sample counts.
                Later items have their initial priorities.
            progress: called at each chunk.
            oldest_id: items with a smaller id are dropped.
        """
        owners = np.full(self.capacity, NO_ITEM, dtype=np.int64)
        for first_id, chunk in chunks:
            ids = np.arange(first_id, first_id + len(chunk), dtype=np.int64)
            owners[ids % self.capacity] = ids
        if state is not None:
            known = np.isin(owners, state.item_ids)
            owners[(owners < state.next_id) & ~known] = NO_ITEM
        owners[owners < oldest_id] = NO_ITEM
        owners[self._overdue_slots(owners)] = NO_ITEM
        for first_id, chunk in chunks:
            ids = np.arange(first_id, first_id + len(chunk), dtype=np.int64)
            progress()
            kept = owners[ids % self.capacity] == ids
            if kept.any():
                self._put(ids[kept], chunk if kept.all() else chunk.take(kept))
        if state is not None:
            self._restore_state(state)

    def rebase_limiter(self) -> None:
        """Move the limiter's cursor within its bounds after `restore`."""
        times = self._max_times_sampled or math.inf
        self.limiter.rebase(self._size, self._size * times if self._size else 0.0)

    def _overdue_slots(self, owners: Ids) -> Ids:
        """Slots whose item is older than an item that will be evicted before it.

        Such an item had been evicted by one that is missing from the log, because the disk was
        full or the log is damaged. It would stay for a whole round longer than newer items.
        """
        slots: Ids = (self._next_id + np.arange(self.capacity)) % self.capacity
        ids = owners[slots]  # in the order in which they will be evicted
        overdue: Ids = slots[(ids != NO_ITEM) & (ids < np.maximum.accumulate(ids))]
        return overdue

    def _put(self, ids: Ids, chunk: Chunk) -> None:
        """Write items to free slots."""
        slots = ids % self.capacity
        self._store.put(slots, chunk)
        self._selector.insert(slots, chunk.priorities)
        self._ids[slots] = ids
        if self._max_times_sampled:
            self._times_sampled[slots] = 0
        self._size += len(chunk)

    def _restore_state(self, state: TableState) -> None:
        slots = state.item_ids % self.capacity
        present = self._ids[slots] == state.item_ids
        self._selector.update(slots[present], state.priorities[present])
        if self._max_times_sampled:
            self._times_sampled[slots[present]] = state.times_sampled[present]

    def _remove(self, slots: npt.NDArray[np.int64]) -> None:
        self._selector.delete(slots)
        self._store.delete(slots)
        self._ids[slots] = NO_ITEM
        self._size -= len(slots)


def _earlier_draws(slots: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How often each slot was drawn earlier in the batch, `[B]`."""
    order = np.argsort(slots, kind="stable")
    in_order = slots[order]
    begins = np.searchsorted(in_order, in_order)
    earlier = np.empty_like(slots)
    earlier[order] = np.arange(len(slots)) - begins
    return earlier


def make_table(config: Config, schema: Schema, first_id: int, starts: int = 0) -> Table:
    """Make the table that a configuration describes.

    Args:
        config: the run's configuration.
        schema: the columns and frames of its items.
        first_id: id of the first inserted item.
        starts: number of earlier starts of the replay server, part of the seed, so that each
            start draws other random numbers.
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
