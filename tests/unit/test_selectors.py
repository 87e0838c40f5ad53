"""Selectors: chosen slots and their probabilities."""

from __future__ import annotations

import numpy as np
import pytest

from apex.errors import EmptyTableError
from apex.replay.table.selectors import Fifo, Prioritized, Uniform, make_selector


def slots(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int64)


def probabilities_by_slot(selector, count: int = 2000) -> dict[int, float]:
    chosen, probabilities = selector.sample(count, np.random.default_rng(0))
    return dict(zip(chosen.tolist(), probabilities.tolist()))


def test_prioritized_probability_is_priority_to_alpha_over_the_sum():
    selector = Prioritized(4, 0.5)
    selector.insert(slots(0, 1, 2), np.array([1.0, 4.0, 16.0]))
    # 1, 2 and 4 of 7
    assert probabilities_by_slot(selector) == pytest.approx({0: 1 / 7, 1: 2 / 7, 2: 4 / 7})


def test_prioritized_raises_updated_priorities_to_the_same_alpha():
    inserted, updated = Prioritized(4, 0.5), Prioritized(4, 0.5)
    inserted.insert(slots(0, 1), np.array([9.0, 1.0]))
    updated.insert(slots(0, 1), np.array([2.0, 100.0]))
    updated.update(slots(0, 1), np.array([9.0, 1.0]))
    assert probabilities_by_slot(inserted) == pytest.approx({0: 0.75, 1: 0.25})
    assert probabilities_by_slot(updated) == pytest.approx({0: 0.75, 1: 0.25})


def test_prioritized_frequencies_match_the_probabilities():
    priorities = np.array([0.1, 1.0, 2.0, 0.0, 5.0])
    selector = Prioritized(5, 0.6)
    selector.insert(np.arange(5), priorities)
    expected = priorities**0.6 / (priorities**0.6).sum()
    rng, drawn = np.random.default_rng(1), []
    for _ in range(2000):
        chosen, probabilities = selector.sample(10, rng)
        np.testing.assert_allclose(probabilities, expected[chosen])
        drawn.append(chosen)
    frequencies = np.bincount(np.concatenate(drawn), minlength=5) / 20_000
    # Five standard deviations of independent draws; stratified draws vary less.
    assert np.abs(frequencies - expected).max() < 5 * 0.5 / np.sqrt(20_000)
    assert frequencies[3] == 0


def test_prioritized_never_chooses_a_deleted_slot():
    selector = Prioritized(3, 1.0)
    selector.insert(slots(0, 1, 2), np.array([1.0, 50.0, 3.0]))
    selector.delete(slots(1))
    assert probabilities_by_slot(selector) == pytest.approx({0: 0.25, 2: 0.75})


def test_prioritized_raises_when_every_priority_is_zero():
    selector = Prioritized(3, 0.6)
    selector.insert(slots(0, 1), np.zeros(2))
    with pytest.raises(EmptyTableError):
        selector.sample(1, np.random.default_rng(0))


@pytest.mark.parametrize("exponent", [0.0, 0.6])
def test_prioritized_never_chooses_priority_zero_also_after_a_restore(exponent):
    selector, restored = Prioritized(3, exponent), Prioritized(3, exponent)
    selector.insert(slots(0, 1, 2), np.array([1.0, 0.0, 1.0]))
    saved = selector.priorities(np.arange(3))
    assert saved.tolist() == [1.0, 0.0, 1.0]
    restored.insert(np.arange(3), saved)
    assert probabilities_by_slot(selector) == {0: 0.5, 2: 0.5}
    assert probabilities_by_slot(restored) == {0: 0.5, 2: 0.5}


def test_uniform_chooses_remaining_slots_equally_after_deletes():
    selector = Uniform(8)
    selector.insert(np.arange(8), np.ones(8))
    selector.delete(slots(7, 0, 3))
    selector.insert(slots(3), np.array([99.0]))
    selector.delete(slots(5))
    chosen, probabilities = selector.sample(20_000, np.random.default_rng(0))
    assert set(probabilities.tolist()) == {0.2}
    counts = np.bincount(chosen, minlength=8)
    assert np.flatnonzero(counts).tolist() == [1, 2, 3, 4, 6]
    assert np.abs(counts[[1, 2, 3, 4, 6]] / 20_000 - 0.2).max() < 5 * 0.4 / np.sqrt(20_000)


def test_uniform_matches_a_set_over_random_inserts_and_deletes():
    rng = np.random.default_rng(3)
    selector, present = Uniform(20), set()
    for _ in range(300):
        absent = sorted(set(range(20)) - present)
        if absent and (rng.random() < 0.5 or len(present) < 2):
            added = rng.choice(absent, size=rng.integers(1, len(absent) + 1), replace=False)
            selector.insert(added, np.ones(len(added)))
            present |= set(added.tolist())
        else:
            gone = rng.choice(sorted(present), size=rng.integers(1, len(present)), replace=False)
            selector.delete(gone)
            present -= set(gone.tolist())
        chosen, probabilities = selector.sample(400, rng)
        assert set(chosen.tolist()) <= present
        assert probabilities[0] == 1 / len(present)


def test_uniform_raises_when_it_is_empty():
    with pytest.raises(EmptyTableError):
        Uniform(4).sample(2, np.random.default_rng(0))


def test_fifo_returns_the_oldest_first_and_at_most_all():
    selector, rng = Fifo(), np.random.default_rng(0)
    selector.insert(slots(3, 1, 2), np.ones(3))
    selector.insert(slots(0), np.ones(1))
    chosen, probabilities = selector.sample(2, rng)
    assert chosen.tolist() == [3, 1] and probabilities.tolist() == [1.0, 1.0]
    assert selector.sample(9, rng)[0].tolist() == [3, 1, 2, 0]


def test_fifo_is_a_queue_when_chosen_slots_are_deleted():
    selector, rng = Fifo(), np.random.default_rng(0)
    selector.insert(slots(5, 6, 7), np.ones(3))
    served = []
    for _ in range(3):
        chosen, _ = selector.sample(1, rng)
        selector.delete(chosen)
        served += chosen.tolist()
    selector.insert(slots(5), np.ones(1))
    assert served == [5, 6, 7] and selector.sample(4, rng)[0].tolist() == [5]


@pytest.mark.parametrize(
    ("name", "kind"), [("fifo", Fifo), ("uniform", Uniform), ("prioritized", Prioritized)]
)
def test_make_selector_returns_the_named_kind(name, kind):
    assert type(make_selector(name, 4, 0.6)) is kind
