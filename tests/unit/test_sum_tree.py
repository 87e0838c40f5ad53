"""The sum tree against sums and searches over a plain array."""

from __future__ import annotations

import numpy as np
import pytest

from apex.errors import EmptyTableError
from apex.replay.table.sum_tree import SumTree

CAPACITIES = [1, 2, 3, 5, 8, 13, 64, 100]
WIDE = [1000, 1025, 3000, 70_000]
"""Around and above the number of nodes at which a search begins."""


def naive_sample(masses: np.ndarray, uniform: float) -> int:
    """The first slot at which the running sum exceeds the fraction of the total mass."""
    wanted, running = uniform * masses.sum(), 0.0
    for slot, mass in enumerate(masses):
        running += mass
        if running > wanted:
            return slot
    raise AssertionError("a fraction below 1 falls in some slot")


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_sums_and_samples_match_a_naive_search_on_random_data(capacity):
    rng = np.random.default_rng(capacity)
    tree, masses = SumTree(capacity), np.zeros(capacity)
    for _ in range(50):
        slots = rng.choice(capacity, size=rng.integers(1, capacity + 1), replace=False)
        # Sums of quarters are exact in any order, and so is the oracle.
        masses[slots] = rng.integers(0, 5, len(slots)) / 4
        tree.set(slots, masses[slots])
        tree.check_valid()
        assert tree.total == masses.sum()
        np.testing.assert_array_equal(tree.get(np.arange(capacity)), masses)
        if masses.sum() > 0:
            uniforms = rng.random(20)
            expected = [naive_sample(masses, u) for u in uniforms]
            assert tree.sample(uniforms).tolist() == expected


@pytest.mark.parametrize("capacity", [*CAPACITIES, *WIDE])
def test_masses_match_an_array_when_slots_are_repeated_adjacent_or_far_apart(capacity):
    rng = np.random.default_rng(capacity)
    tree, masses = SumTree(capacity), np.zeros(capacity)
    for count in (1, 2, 50, 512):
        begin, spread = rng.integers(capacity), rng.integers(1, capacity + 1)
        for slots in (
            rng.integers(0, capacity, count),
            (begin + np.arange(count)) % capacity,  # an insert; some reach the end of the table
            (begin + rng.integers(0, spread, count)) % capacity,
        ):
            new = rng.integers(0, 5, count) / 4
            tree.set(slots, new)
            for slot, mass in zip(slots, new):
                masses[slot] = mass
            tree.check_valid()
            assert tree.total == masses.sum()
            np.testing.assert_array_equal(tree.get(np.arange(capacity)), masses)


@pytest.mark.parametrize("capacity", WIDE)
def test_samples_match_a_search_of_running_sums_in_a_wide_tree(capacity):
    rng = np.random.default_rng(capacity)
    tree, masses = SumTree(capacity), rng.integers(0, 5, capacity) / 4
    masses[rng.random(capacity) < 0.4] = 0
    masses[capacity // 3 : capacity // 2] = 0
    tree.set(np.arange(capacity), masses)
    running = np.cumsum(masses)
    starts = (running - masses)[masses > 0] / running[-1]
    uniforms = rng.permutation(np.concatenate([rng.random(2000), starts]))
    expected = np.searchsorted(running, uniforms * running[-1], side="right")
    assert tree.sample(uniforms).tolist() == expected.tolist()
    assert (masses[expected] > 0).all()


@pytest.mark.parametrize("capacity", CAPACITIES)
def test_last_slot_is_sampled_when_the_point_lies_in_it(capacity):
    tree = SumTree(capacity)
    tree.set(np.arange(capacity), np.ones(capacity))
    highest = np.nextafter(1.0, 0.0)
    assert tree.sample(np.array([0.0, highest])).tolist() == [0, capacity - 1]


def test_sampled_slot_always_has_mass_despite_rounding():
    rng = np.random.default_rng(0)
    tree = SumTree(37)
    for _ in range(200):
        masses = rng.random(37) ** 20 * (rng.random(37) < 0.3)
        masses[rng.integers(37)] = 1e-12
        tree.set(np.arange(37), masses)
        edges = np.cumsum(masses) / masses.sum()
        uniforms = np.concatenate([rng.random(50), edges, [0.0, 1 - 2**-53]])
        slots = tree.sample(np.clip(uniforms, 0.0, np.nextafter(1.0, 0.0)))
        assert (masses[slots] > 0).all()


@pytest.mark.parametrize("capacity", [1, 6, 8])
def test_sample_raises_when_total_mass_is_zero(capacity):
    tree = SumTree(capacity)
    with pytest.raises(EmptyTableError, match="total priority is 0"):
        tree.sample(np.array([0.5]))
    tree.set(np.array([0]), np.array([1.0]))
    tree.set(np.array([0]), np.array([0.0]))
    with pytest.raises(EmptyTableError, match="total priority is 0"):
        tree.sample(np.array([0.5]))


def test_last_mass_wins_when_a_slot_is_set_twice():
    tree = SumTree(5)
    tree.set(np.array([3, 1, 3, 3]), np.array([9.0, 2.0, 7.0, 0.5]))
    assert tree.get(np.array([3, 1])).tolist() == [0.5, 2.0]
    assert tree.total == 2.5
    tree.check_valid()


def test_check_valid_fails_when_an_inner_node_is_not_the_sum_of_its_children():
    tree = SumTree(4)
    tree.set(np.arange(4), np.array([1.0, np.nan, 1.0, 1.0]))  # NaN equals no sum
    with pytest.raises(AssertionError):
        tree.check_valid()
