"""Rate limiter: keep the ratio of sampled to inserted items within bounds."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass


@dataclass
class RateLimiter:
    """Reverb's SampleToInsertRatio (Cassirer et al., 2021, section 4.2).

    With S = samples_per_insert, the cursor `S * (inserted - min_size) - sampled` must stay within
    ± tolerance once the table holds `min_size` items.

    Args:
        min_size: items that the table must contain before the first sample.
        samples_per_insert: S, the target ratio; 0 disables the limit on the ratio.
        tolerance: how far the cursor may be from 0, in samples.
        inserted: items inserted so far.
        sampled: items sampled so far.
    """

    min_size: int
    samples_per_insert: float
    tolerance: float
    inserted: int = 0
    sampled: int = 0

    @property
    def cursor(self) -> float:
        """Number of samples that are due; negative if samples are ahead of the ratio."""
        return self.samples_per_insert * (self.inserted - self.min_size) - self.sampled

    @property
    def max_insert(self) -> int:
        """Largest insert, in items, that cannot deadlock inserting and sampling.

        While an insert of k items must wait, the cursor is above `tolerance - S * k`. That must
        leave room for any batch that the tolerance allows.
        """
        if self.samples_per_insert == 0:
            return sys.maxsize
        return max(1, int(self.tolerance / self.samples_per_insert))

    def rebase(self, size: int, samples_left: float) -> None:
        """Move the cursor back within its bounds after a change of settings or a loss of items.

        With the cursor out of bounds, one side would wait until the other has caught up, or both
        would wait forever.

        Args:
            size: items in the table.
            samples_left: how many more samples the items of the table allow.
        """
        if size < self.min_size:
            self.inserted, self.sampled = size, 0
        elif self.samples_per_insert:
            highest = min(self.tolerance, samples_left)
            self.sampled += math.ceil(max(0.0, self.cursor - highest))
            self.sampled -= math.ceil(max(0.0, -self.tolerance - self.cursor))

    def can_insert(self, count: int) -> bool:
        """Whether `count` more items may be inserted now."""
        if self.samples_per_insert == 0 or self.inserted + count <= self.min_size:
            return True
        return self.cursor + self.samples_per_insert * count <= self.tolerance

    def can_sample(self, count: int, size: int) -> bool:
        """Whether `count` items may be sampled now from a table of `size` items."""
        if size < self.min_size:
            return False
        return self.samples_per_insert == 0 or self.cursor - count >= -self.tolerance
