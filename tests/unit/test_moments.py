"""Moments: the formula of Chan et al. against NumPy's, and what agents add to them."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from apex.acting.normalization import RETURN, MomentCollector, MomentRecorder, Normalization
from apex.ops.moments import Moments

MILLION = 1_000_000


def test_moments_of_a_few_rows_are_those_worked_out_by_hand() -> None:
    found = Moments.of(np.array([[1.0, 10.0], [2.0, 10.0], [3.0, 10.0], [4.0, 10.0]]))
    assert (found.count, found.mean.tolist(), found.m2.tolist()) == (4, [2.5, 10.0], [5.0, 0.0])
    assert found.variance.tolist() == [1.25, 0.0]


def test_merged_moments_are_those_of_all_rows() -> None:
    """Of 1, 2 and of 3, 4, 15: mean 5, deviations -4, -3, -2, -1, 10."""
    one, other = Moments.of(np.array([[1.0], [2.0]])), Moments.of(np.array([[3.0], [4.0], [15.0]]))
    for merged in (one.merged(other), other.merged(one)):
        assert merged.count == 5 and merged.mean == 5.0
        assert merged.m2 == pytest.approx(130.0, rel=1e-15)
    nothing = Moments.none(1)
    assert nothing.merged(one) is one and one.merged(nothing) is one


@pytest.mark.parametrize("offset", [0.0, 1e6, -1e9])
def test_a_million_numbers_in_random_parts_have_numpys_mean_and_variance(offset: float) -> None:
    rng = np.random.default_rng(3)
    values = offset + rng.normal(size=(MILLION, 1)) * 2.0
    edges = np.sort(rng.choice(np.arange(1, MILLION), 500, replace=False))
    parts = [Moments.of(part) for part in np.split(values, edges)]
    while len(parts) > 1:  # in random order and as a random tree
        first, second = (parts.pop(int(rng.integers(len(parts)))) for _ in range(2))
        parts.append(first.merged(second))
    exact = (values - offset).astype(np.longdouble)
    assert parts[0].count == MILLION
    last_digit = np.spacing(max(abs(offset), 1.0))
    np.testing.assert_allclose(parts[0].mean - offset, exact.mean(axis=0), atol=8 * last_digit)
    np.testing.assert_allclose(parts[0].variance, exact.var(axis=0), rtol=1e-7)


def test_collector_gives_the_moments_of_all_rows_since_they_were_taken() -> None:
    rng = np.random.default_rng(0)
    steps = rng.normal(size=(150, 3, 2, 2)).astype(np.float32)  # 150 steps: more than wait
    collector = MomentCollector({"observation": 4, "other": 1})
    for observations in steps:
        collector.add("observation", observations)
        observations[:] = np.nan  # an environment may write its next observations there
    taken = collector.take()
    rows = np.random.default_rng(0).normal(size=(150, 3, 2, 2)).astype(np.float32).reshape(450, 4)
    assert list(taken) == ["observation"] and taken["observation"].count == 450
    np.testing.assert_allclose(taken["observation"].mean, rows.astype(float).mean(axis=0))
    np.testing.assert_allclose(taken["observation"].variance, rows.astype(float).var(axis=0))
    assert collector.take() == {}


def test_collector_leaves_out_numbers_that_would_overflow(caplog) -> None:
    collector = MomentCollector({"observation": 1})
    collector.add("observation", np.array([[1e200]]))
    with caplog.at_level(logging.WARNING):
        assert collector.take() == {}
    assert "beyond 1e100" in caplog.text
    collector.add("observation", np.array([[3.0]]))
    assert collector.take()["observation"].mean == [3.0]


def flags(*values: int) -> np.ndarray:
    return np.array(values, dtype=bool)


def test_recorder_counts_each_observation_and_discounted_return_once() -> None:
    """Two environments, gamma 0.5. The second ends in its second step, and begins in the third."""
    settings = Normalization({"observation": (1,)}, rewards=True, discount=0.5)
    collector = MomentCollector(settings.sizes)
    recorder = MomentRecorder(settings, collector)
    observations = np.arange(8.0).reshape(4, 2, 1)
    recorder.begin(observations[0])
    recorder.observe(observations[1], np.array([1.0, 2.0]), flags(0, 0), flags(0, 0))
    recorder.observe(observations[2], np.array([1.0, 4.0]), flags(0, 1), flags(0, 0))
    recorder.observe(observations[3], np.array([1.0, 0.0]), flags(0, 0), flags(0, 1))
    taken = collector.take()
    assert taken["observation"].count == 8 and taken["observation"].mean == [3.5]
    returns = np.array([1.0, 2.0, 1.5, 5.0, 1.75])  # R = 0.5 R + r; the ignored step has none
    assert taken[RETURN].count == 5
    np.testing.assert_allclose(taken[RETURN].mean, [returns.mean()])
    np.testing.assert_allclose(taken[RETURN].variance, [returns.var()])
    recorder.observe(observations[3], np.array([0.0, 8.0]), flags(0, 0), flags(0, 0))
    assert collector.take()[RETURN].mean == [(0.875 + 8.0) / 2]  # the second began at 0
    recorder.begin(observations[0])
    recorder.observe(observations[1], np.array([6.0, 6.0]), flags(0, 0), flags(0, 0))
    assert collector.take()[RETURN].mean == [6.0]
