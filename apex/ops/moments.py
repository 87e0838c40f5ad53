"""Count, mean and sum of squared deviations of numbers, and how to merge two of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LARGEST = 1e100
"""Largest magnitude of a mean. A sum of squares may be 1e50 times as large: merging many of them
still does not overflow."""


@dataclass(frozen=True)
class Moments:
    """The moments of `count` rows of N numbers, column by column.

    Args:
        count: number of rows.
        mean: `[N] float64`; zeros if there are no rows.
        m2: `[N] float64`, sum of the squared deviations from the mean; zeros likewise.
    """

    count: int
    mean: Floats
    m2: Floats

    @classmethod
    def none(cls, size: int) -> Moments:
        """The moments of no rows of `size` numbers."""
        return cls(0, np.zeros(size), np.zeros(size))

    @classmethod
    def of(cls, values: npt.NDArray[np.generic]) -> Moments:
        """The moments of the rows of `values`, `[B, N]`, B of at least 1.

        The corrected two-pass algorithm (Chan, Golub and LeVeque, 1983, equation 1.7): the second
        term is 0 but for the rounding of the mean.
        """
        numbers = values.astype(np.float64)
        mean = numbers.mean(axis=0)
        deviations = numbers - mean
        m2 = np.square(deviations).sum(axis=0) - np.square(deviations.sum(axis=0)) / len(numbers)
        return cls(len(numbers), mean, np.maximum(m2, 0.0))

    def merged(self, other: Moments) -> Moments:
        """The moments of the rows of both (Chan, Golub and LeVeque, 1979, equations 2.1)."""
        if not self.count:
            return other
        if not other.count:
            return self
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        m2 = self.m2 + other.m2 + np.square(delta) * (self.count * (other.count / count))
        return Moments(count, mean, m2)

    @property
    def variance(self) -> Floats:
        """`[N]`, the mean squared deviation; NaN if there are no rows."""
        return self.m2 / self.count if self.count else np.full_like(self.m2, np.nan)

    @property
    def valid(self) -> bool:
        """Whether all numbers are finite and in the range that can be merged."""
        good = (np.abs(self.mean) <= LARGEST) & (self.m2 >= 0.0) & (self.m2 <= 1e50 * LARGEST)
        return self.count >= 0 and bool(good.all())
