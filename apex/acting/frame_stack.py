"""Frame stacking for E environments."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apex.data.schema import Array

Bools = npt.NDArray[np.bool_]


class FrameStacker:
    """Stacks the last `depth` frames of E environments; frames before an episode are zero.

    With a depth of 0 observations are returned unchanged.
    """

    ROOM = 16
    """Frames written one after the other before the last ones are moved back to the front. A stack
    is a view of consecutive frames, so only the newest frame is copied."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._frames: Array | None = None
        self._end = 0
        """One past the newest frame in `_frames`."""

    def push(self, observations: Array, first: Bools) -> Array:
        """Add one frame of each environment.

        Args:
            observations: `[E, ...]`, the newest frames.
            first: `[E] bool`, the frame begins an episode.

        Returns:
            `[E, depth, ...]`, a view that is valid until the next call.
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
