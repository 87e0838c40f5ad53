"""Sum tree over slots: batched updates and batched proportional sampling in O(log n)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apex.errors import EmptyTableError


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

    @property
    def total(self) -> float:
        """Sum of all masses."""
        return float(self._nodes[1])

    def get(self, slots: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """Masses of `slots`: `[B] int64` to `[B] float64`."""
        return self._nodes[self._leaves + slots]

    def set(self, slots: npt.NDArray[np.int64], masses: npt.NDArray[np.float64]) -> None:
        """Set the masses of `slots`. If a slot is repeated, its last mass applies.

        Args:
            slots: `[B] int64` in [0, capacity).
            masses: `[B] float64`, finite and >= 0.
        """
        if not len(slots):
            return
        nodes = self._nodes
        children = self._leaves + slots
        nodes[children] = masses
        while self._leaves > 1:
            parents = np.unique(children >> 1)
            nodes[parents] = nodes[2 * parents] + nodes[2 * parents + 1]
            if parents[0] == 1:
                return
            children = parents

    def sample(self, uniforms: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Find the slots at the given fractions of the total mass.

        Args:
            uniforms: `[B] float64` in [0, 1).

        Returns:
            `[B] int64`, slots with a mass > 0.

        Raises:
            EmptyTableError: the total mass is zero.
        """
        nodes = self._nodes
        if not nodes[1] > 0:
            raise EmptyTableError(
                "the total priority is 0: expected at least one item with a priority > 0"
            )
        remaining = uniforms * nodes[1]
        node = np.ones(len(uniforms), dtype=np.int64)
        for _ in range(self._leaves.bit_length() - 1):
            left = 2 * node
            left_mass = nodes[left]
            go_right = (remaining >= left_mass) & (nodes[left + 1] > 0)
            remaining -= np.where(go_right, left_mass, 0.0)
            node = left + go_right
        return node - self._leaves

    def check_valid(self) -> None:
        """Assert that inner nodes are the sums of their children and unused leaves are 0."""
        inner = np.arange(1, self._leaves)
        assert (self._nodes[inner] == self._nodes[2 * inner] + self._nodes[2 * inner + 1]).all()
        assert (self._nodes[self._leaves + self.capacity :] == 0).all()
