"""How a table chooses the items of a batch."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from apex.errors import EmptyTableError
from apex.replay.table.sum_tree import SumTree

Slots = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Selector(Protocol):
    """Chooses among the slots of a table that hold an item."""

    def insert(self, slots: Slots, priorities: Floats) -> None:
        """Add slots, `[M]` each, none of which is in the selector."""

    def update(self, slots: Slots, priorities: Floats) -> None:
        """Give slots of the selector new priorities, `[M]` each."""

    def delete(self, slots: Slots) -> None:
        """Remove distinct slots of the selector, `[M]`."""

    def priorities(self, slots: Slots) -> Floats:
        """The priorities of slots of the selector, `[M]`; ones where it has none."""

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Slots, Floats]:
        """Choose `count` slots; gives them with the probability of each, `[count]` both."""


class Prioritized:
    """P(i) = p_i^alpha / sum_k p_k^alpha, with replacement (Schaul et al., 2016, equation 1).

    A batch is drawn stratified: the mass is cut into `count` equal parts and one point is drawn
    from each. Initial and updated priorities are raised to the same exponent.
    """

    def __init__(self, capacity: int, priority_exponent: float) -> None:
        self._tree = SumTree(capacity)
        self._exponent = priority_exponent

    def insert(self, slots: Slots, priorities: Floats) -> None:
        self._tree.set(slots, priorities**self._exponent)

    update = insert

    def delete(self, slots: Slots) -> None:
        self._tree.set(slots, np.zeros(len(slots)))

    def priorities(self, slots: Slots) -> Floats:
        if self._exponent == 0:
            return np.ones(len(slots))
        found: Floats = self._tree.get(slots) ** (1.0 / self._exponent)
        return found

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Slots, Floats]:
        strata = (np.arange(count) + rng.random(count)) / count
        slots = self._tree.sample(np.minimum(strata, np.nextafter(1.0, 0.0)))
        return slots, self._tree.get(slots) / self._tree.total


class Uniform:
    """P(i) = 1 / N, with replacement. The slots in use stand densely at the front of a list."""

    def __init__(self, capacity: int) -> None:
        self._slots = np.zeros(capacity, dtype=np.int64)
        self._position = np.full(capacity, -1, dtype=np.int64)
        self._size = 0

    def insert(self, slots: Slots, priorities: Floats) -> None:
        positions = np.arange(self._size, self._size + len(slots))
        self._slots[positions] = slots
        self._position[slots] = positions
        self._size += len(slots)

    def update(self, slots: Slots, priorities: Floats) -> None:
        """Priorities mean nothing here."""

    def delete(self, slots: Slots) -> None:
        for slot in slots:
            self._size -= 1
            hole, last = self._position[slot], self._slots[self._size]
            self._slots[hole], self._position[last] = last, hole
            self._position[slot] = -1

    def priorities(self, slots: Slots) -> Floats:
        return np.ones(len(slots))

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Slots, Floats]:
        if self._size == 0:
            raise EmptyTableError("there is no item to choose from")
        slots = self._slots[rng.integers(0, self._size, count)]
        return slots, np.full(count, 1.0 / self._size)


class Fifo:
    """The oldest items first, each with probability 1, without replacement within a batch.

    With `max_times_sampled = 1` the table is a queue.
    """

    def __init__(self) -> None:
        self._slots: dict[int, None] = {}

    def insert(self, slots: Slots, priorities: Floats) -> None:
        self._slots.update(dict.fromkeys(slots.tolist()))

    def update(self, slots: Slots, priorities: Floats) -> None:
        """Priorities mean nothing here."""

    def delete(self, slots: Slots) -> None:
        for slot in slots.tolist():
            del self._slots[slot]

    def priorities(self, slots: Slots) -> Floats:
        return np.ones(len(slots))

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Slots, Floats]:
        oldest = [slot for slot, _ in zip(self._slots, range(count))]
        return np.array(oldest, dtype=np.int64), np.ones(len(oldest))


def make_selector(name: str, capacity: int, priority_exponent: float) -> Selector:
    """The selector that a configuration names."""
    if name == "fifo":
        return Fifo()
    if name == "uniform":
        return Uniform(capacity)
    return Prioritized(capacity, priority_exponent)
