"""Selectors: prioritized, uniform and FIFO choice of the items of a batch."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from apex.errors import EmptyTableError
from apex.replay.table.sum_tree import SumTree

Slots = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Selector(Protocol):
    """Interface for choosing among the occupied slots of a table."""

    def insert(self, slots: Slots, priorities: Floats) -> None:
        """Add slots that are not in the selector yet, `[M]` each."""

    def update(self, slots: Slots, priorities: Floats) -> None:
        """Set the priorities of slots of the selector, `[M]` each."""

    def delete(self, slots: Slots) -> None:
        """Remove slots of the selector, `[M]`, all distinct."""

    def priorities(self, slots: Slots) -> Floats:
        """Priorities of slots of the selector, `[M]`; ones if the selector ignores priorities."""

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Slots, Floats]:
        """Choose `count` slots. Returns the slots and their probabilities, `[count]` each."""


class Prioritized:
    """Prioritized sampling with replacement (Schaul et al., 2016, equation 1).

    P(i) = p_i^alpha / sum_k p_k^alpha. A batch is a stratified sample: the total mass is divided
    into `count` equal parts, and one point is drawn from each. Initial and updated priorities are
    raised to the same exponent. A slot of priority 0 has no mass, also if the exponent is 0.
    """

    def __init__(self, capacity: int, priority_exponent: float) -> None:
        self._tree = SumTree(capacity)
        self._exponent = priority_exponent

    def insert(self, slots: Slots, priorities: Floats) -> None:
        self._tree.set(slots, _powers(priorities, self._exponent))

    update = insert

    def delete(self, slots: Slots) -> None:
        self._tree.set(slots, np.zeros(len(slots)))

    def priorities(self, slots: Slots) -> Floats:
        inverse = 1.0 / self._exponent if self._exponent else 0.0
        return _powers(self._tree.get(slots), inverse)

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Slots, Floats]:
        strata = (np.arange(count) + rng.random(count)) / count
        slots = self._tree.sample(np.minimum(strata, np.nextafter(1.0, 0.0)))
        return slots, self._tree.get(slots) / self._tree.total


def _powers(values: Floats, exponent: float) -> Floats:
    """Raise to an exponent; 0 stays 0, although NumPy's 0 ** 0 is 1."""
    return values**exponent if exponent else (values > 0).astype(np.float64)


class Uniform:
    """Uniform sampling with replacement. The used slots are the first `_size` of `_slots`."""

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
        """Do nothing: this selector ignores priorities."""

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
            raise EmptyTableError("the table is empty: expected at least one item to sample")
        slots = self._slots[rng.integers(0, self._size, count)]
        return slots, np.full(count, 1.0 / self._size)


class Fifo:
    """Oldest items first, each with probability 1, without replacement within a batch.

    With `max_times_sampled = 1` the table is a queue.
    """

    def __init__(self) -> None:
        self._slots: dict[int, None] = {}

    def insert(self, slots: Slots, priorities: Floats) -> None:
        self._slots.update(dict.fromkeys(slots.tolist()))

    def update(self, slots: Slots, priorities: Floats) -> None:
        """Do nothing: this selector ignores priorities."""

    def delete(self, slots: Slots) -> None:
        for slot in slots.tolist():
            del self._slots[slot]

    def priorities(self, slots: Slots) -> Floats:
        return np.ones(len(slots))

    def sample(self, count: int, rng: np.random.Generator) -> tuple[Slots, Floats]:
        oldest = [slot for slot, _ in zip(self._slots, range(count))]
        return np.array(oldest, dtype=np.int64), np.ones(len(oldest))


def make_selector(name: str, capacity: int, priority_exponent: float) -> Selector:
    """Make the selector that `replay.selector` names."""
    if name == "fifo":
        return Fifo()
    if name == "uniform":
        return Uniform(capacity)
    return Prioritized(capacity, priority_exponent)
