"""Sum tree over slots: batched updates and batched proportional sampling in O(log n)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apex.errors import EmptyTableError

TOP_NODES = 1024
"""Nodes of the level at which a search begins: one search of their running sums costs less than
ten steps down the tree."""
DENSE = 16
"""If the changed range has at most this many nodes per changed slot, the whole range is summed
as a slice: cheaper than gathering the changed ones."""


class SumTree:
    """Masses of `capacity` slots, stored as a complete binary tree in one array.

    Node 1 is the root, node k has the children 2k and 2k + 1, and slot s is the leaf
    `leaves + s`. An inner node is always recomputed from its children, so that rounding errors
    do not accumulate. The structure is from Schaul et al., 2016, appendix B.2.1.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._leaves = 1 << max(0, capacity - 1).bit_length()
        self._nodes = np.zeros(2 * self._leaves, dtype=np.float64)
        self._node = self._nodes.data
        """The same nodes, for reading and writing single ones: NumPy takes several times longer."""
        self._pairs = self._nodes.reshape(-1, 2)
        """The same nodes: row k is the two children of node k."""
        self._top = min(self._leaves, TOP_NODES)

    @property
    def total(self) -> float:
        """Sum of all masses."""
        return float(self._nodes[1])

    def get(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Masses of `slots`: `[B] int64` to `[B] float64`."""
        return self._nodes.take(self._leaves + slots)

    def set(self, slots: npt.NDArray[np.int64], masses: npt.NDArray[np.float64]) -> None:
        """Set the masses of `slots`. If a slot is repeated, its last mass applies.

        Args:
            slots: `[B] int64` in [0, capacity).
            masses: `[B] float64`, finite and >= 0.
        """
        if not len(slots):
            return
        nodes, node, pairs = self._nodes, self._node, self._pairs
        changed = self._leaves + slots
        nodes[changed] = masses
        first, last = int(changed.min()), int(changed.max())
        while last - first > DENSE * len(slots):
            first, last = first >> 1, last >> 1
            changed >>= 1  # with repetitions: removing them costs more than summing them again
            children = pairs.take(changed, axis=0)
            nodes[changed] = children[:, 0] + children[:, 1]
        while first < last:
            first, last = first >> 1, last >> 1
            children = pairs[first : last + 1]
            np.add(children[:, 0], children[:, 1], out=nodes[first : last + 1])
        while first > 1:
            first >>= 1
            node[first] = node[2 * first] + node[2 * first + 1]

    def sample(self, uniforms: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Find the slots at the given fractions of the total mass.

        Args:
            uniforms: `[B] float64` in [0, 1).

        Returns:
            `[B] int64`, slots with a mass > 0.

        Raises:
            EmptyTableError: the total mass is zero.
        """
        nodes, top = self._nodes, self._top
        if not nodes[1] > 0:
            raise EmptyTableError(
                "the total priority is 0: expected at least one item with a priority > 0"
            )
        points = uniforms * nodes[1]
        before = np.zeros(top + 1)  # mass before each node of the top level
        np.cumsum(nodes[top : 2 * top], out=before[1:])
        chosen: npt.NDArray[np.int64] = before[1:].searchsorted(points, side="right")
        np.minimum(chosen, top - 1, out=chosen)
        remaining = points - before.take(chosen)
        chosen += top
        for _ in range((self._leaves // top).bit_length() - 1):
            chosen <<= 1
            left_mass = nodes.take(chosen)
            go_right = remaining >= left_mass
            left_mass *= go_right
            remaining -= left_mass
            chosen += go_right
        without_mass = nodes.take(chosen) == 0
        if without_mass.any():  # rounding put a point past the end of a mass
            chosen[without_mass] = self._search(points[without_mass])
        return chosen - self._leaves

    def _search(self, points: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Find the leaves at `points` of the mass, `[B]`, without entering subtrees of mass 0."""
        nodes = self._nodes
        remaining = points.copy()
        chosen = np.ones(len(points), dtype=np.int64)
        for _ in range(self._leaves.bit_length() - 1):
            left = 2 * chosen
            left_mass = nodes[left]
            go_right = (remaining >= left_mass) & (nodes[left + 1] > 0)
            remaining -= np.where(go_right, left_mass, 0.0)
            chosen = left + go_right
        return chosen

    def check_valid(self) -> None:
        """Assert that inner nodes are the sums of their children and unused leaves are 0."""
        inner = np.arange(1, self._leaves)
        assert (self._nodes[inner] == self._nodes[2 * inner] + self._nodes[2 * inner + 1]).all()
        assert (self._nodes[self._leaves + self.capacity :] == 0).all()
