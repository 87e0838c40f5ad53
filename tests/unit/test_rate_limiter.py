"""The rate limiter: literal numbers, and freedom from deadlock."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from apex.config.loading import parse
from apex.config.sections import Config
from apex.replay.table.rate_limiter import RateLimiter


def test_insert_is_not_limited_below_the_minimum_size():
    limiter = RateLimiter(min_size=10, samples_per_insert=4.0, tolerance=8.0)
    assert limiter.can_insert(10)
    limiter.inserted = 10
    # cursor after c more inserts: 4 c <= 8
    assert limiter.can_insert(2) and not limiter.can_insert(3)


def test_insert_waits_until_enough_was_sampled():
    limiter = RateLimiter(10, 4.0, 8.0, inserted=12, sampled=0)
    assert not limiter.can_insert(1)
    limiter.sampled = 3
    assert not limiter.can_insert(1)
    limiter.sampled = 4
    assert limiter.can_insert(1) and not limiter.can_insert(2)


def test_cursor_is_the_number_of_samples_that_are_due():
    limiter = RateLimiter(min_size=10, samples_per_insert=4.0, tolerance=100.0)
    limiter.inserted, limiter.sampled = 15, 12
    assert limiter.cursor == 4 * (15 - 10) - 12


def test_sample_waits_for_the_minimum_size():
    limiter = RateLimiter(10, 4.0, 100.0, inserted=9)
    assert not limiter.can_sample(1, size=9)
    limiter.inserted = 10
    assert limiter.can_sample(1, size=10)


def test_sample_waits_when_samples_exceed_the_tolerance():
    limiter = RateLimiter(10, 4.0, 8.0, inserted=10)
    assert limiter.can_sample(8, size=10) and not limiter.can_sample(9, size=10)
    limiter.sampled = 8
    assert not limiter.can_sample(1, size=10)
    limiter.inserted = 11
    assert limiter.can_sample(4, size=11) and not limiter.can_sample(5, size=11)


def test_zero_samples_per_insert_limits_neither_side():
    limiter = RateLimiter(2, 0.0, 0.0, inserted=2, sampled=10**9)
    assert limiter.can_insert(10**6) and limiter.can_sample(10**6, size=2)
    assert not limiter.can_sample(1, size=1)


def config_with(batch_size: int, prefetch: int, samples_per_insert: float, chunk: int) -> Config:
    return parse(
        {
            "env": {"id": "CartPole-v1"},
            "algorithm": {"name": "apex_dqn"},
            "actor": {"chunk_length": chunk},
            "replay": {"min_size": 100, "samples_per_insert": samples_per_insert},
            "learner": {"batch_size": batch_size, "prefetch": prefetch},
        }
    )


def test_min_tolerance_is_batches_in_flight_plus_one_chunk():
    assert config_with(32, 4, 8.0, 50).min_tolerance == 32 * 4 + 8 * 50


@pytest.mark.parametrize(
    ("batch_size", "prefetch", "ratio", "chunk", "seed"),
    [
        (*combination, seed)
        for combination in itertools.product((1, 32, 512), (1, 4), (0.25, 1.0, 7.5), (1, 50))
        for seed in range(3)
    ],
)
def test_neither_side_deadlocks_with_the_smallest_tolerance(
    batch_size, prefetch, ratio, chunk, seed
):
    """A random schedule of inserts and samples never reaches a state in which both must wait."""
    config = config_with(batch_size, prefetch, ratio, chunk)
    limiter = RateLimiter(100, ratio, config.min_tolerance)
    rng = np.random.default_rng(seed)
    for _ in range(1000):
        # Chunks may be short when an actor drains; batches are always full.
        count = chunk if rng.random() < 0.8 else int(rng.integers(1, chunk + 1))
        size = min(limiter.inserted, 10_000)
        insert = limiter.can_insert(chunk)
        sample = limiter.can_sample(batch_size, size)
        assert insert or sample
        if insert and (not sample or rng.random() < 0.5):
            limiter.inserted += count
        else:
            limiter.sampled += batch_size
    progress = ratio * (limiter.inserted - 100) - limiter.sampled
    assert limiter.sampled > 0 and abs(progress) <= config.min_tolerance


@pytest.mark.parametrize("ratio", [0.25, 1.0, 8.0, 100.0])
@pytest.mark.parametrize("chunk", [1, 3, 50])
def test_chunk_of_the_configured_length_does_not_deadlock(ratio, chunk):
    config = config_with(batch_size=32, prefetch=1, samples_per_insert=ratio, chunk=chunk)
    assert_never_stuck(config, chunk)


@pytest.mark.parametrize("ratio", [0.25, 1.0, 8.0, 100.0])
def test_longest_accepted_chunk_does_not_deadlock(ratio):
    config = config_with(batch_size=32, prefetch=2, samples_per_insert=ratio, chunk=10)
    limiter = RateLimiter(100, ratio, config.min_tolerance)
    assert limiter.max_insert >= 10
    assert_never_stuck(config, limiter.max_insert)


def assert_never_stuck(config: Config, chunk: int) -> None:
    """From every state that sampling can reach, a chunk can eventually be inserted."""
    ratio, batch_size = config.replay.samples_per_insert, config.learner.batch_size
    rng = np.random.default_rng(0)
    for _ in range(200):
        limiter = RateLimiter(100, ratio, config.min_tolerance)
        limiter.inserted = 100 + int(rng.integers(0, 50))
        while limiter.can_sample(batch_size, limiter.inserted):
            limiter.sampled += batch_size
        assert limiter.can_insert(chunk), f"{chunk} items wait forever"


def test_both_sides_deadlock_when_the_tolerance_is_too_small():
    """Guards the simulation above: half a chunk plus half a batch deadlocks."""
    limiter = RateLimiter(100, 1.0, 20.0, inserted=100)
    assert not limiter.can_insert(50) and not limiter.can_sample(32, size=100)


def test_rebase_moves_the_cursor_to_the_nearest_bound():
    limiter = RateLimiter(min_size=100, samples_per_insert=4.0, tolerance=50.0)
    limiter.inserted, limiter.sampled = 6010, 47280  # as after a ratio of 8: cursor -23640
    limiter.rebase(size=1000, samples_left=float("inf"))
    assert limiter.sampled == 23690  # cursor -50
    limiter.rebase(size=1000, samples_left=float("inf"))
    assert limiter.sampled == 23690
    limiter.sampled = 100  # cursor 23540
    limiter.rebase(size=1000, samples_left=30.0)
    assert limiter.sampled == 23610  # cursor 30
    limiter.rebase(size=40, samples_left=30.0)
    assert (limiter.inserted, limiter.sampled) == (40, 0)
