"""Stacks of the last frames of each environment."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apex.data.schema import Array

Bools = npt.NDArray[np.bool_]


class FrameStacker:
    """Keeps the last `depth` frames of E environments; before an episode's start they are zero.

    With a depth of 0 observations pass through.
    """

    ROOM = 16
    """Frames that are written behind each other before the last ones move to the front: a stack
    is a view of those in a row, and only the newest frame is copied."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._frames: Array | None = None
        self._end = 0
        """Of the frames that were written."""

    def push(self, observations: Array, first: Bools) -> Array:
        """Add one frame an environment.

        Args:
            observations: `[E, ...]`.
            first: `[E]`, whether it begins an episode.

        Returns:
            `[E, depth, ...]`, a view that is good until the next call.
        """
        if self._depth == 0:
            return observations
        history = self._depth - 1
        if self._frames is None:
            shape = (len(observations), history + max(self.ROOM, history), *observations.shape[1:])
            self._frames, self._end = np.zeros(shape, dtype=observations.dtype), history
        elif self._end == self._frames.shape[1]:
            self._frames[:, :history] = self._frames[:, self._end - history :]
            self._end = history
        self._frames[:, self._end] = observations
        self._end += 1
        stacks: Array = self._frames[:, self._end - self._depth : self._end]
        if first.any():
            stacks[first, :-1] = 0
        return stacks
