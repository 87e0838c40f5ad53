"""Finished episodes: their returns, and the scalars of `info` that are measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

COLUMN_PREFIX = "info/"
"""Begins the names of these metrics in records and TensorBoard: no other metric has it."""


class Episode(NamedTuple):
    """One finished episode."""

    env: int
    """Index of its environment."""
    episode_return: float
    """Undiscounted, unclipped sum of its rewards."""
    metrics: Mapping[str, float]
    """Scalars of `info` at its last step, by name; those that were missing there are not in it."""


def metric_means(measured: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric over the episodes that have it, in order of first appearance.

    Args:
        measured: `Episode.metrics` of each episode.
    """
    values: dict[str, list[float]] = {}
    for metrics in measured:
        for name, value in metrics.items():
            values.setdefault(name, []).append(value)
    # Dividing first keeps the mean of finite values finite.
    return {name: math.fsum(v / len(found) for v in found) for name, found in values.items()}


def metric_columns(means: Mapping[str, float]) -> dict[str, float]:
    """Name metrics as in records and TensorBoard: `success` becomes `info/success`."""
    return {f"{COLUMN_PREFIX}{name}": value for name, value in means.items()}


def metrics_of(record: Mapping[str, object]) -> dict[str, float]:
    """The metrics of a record that `metric_columns` named."""
    return {
        name.removeprefix(COLUMN_PREFIX): float(value)
        for name, value in record.items()
        if name.startswith(COLUMN_PREFIX) and isinstance(value, (int, float))
    }
