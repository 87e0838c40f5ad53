"""Frame stacks of the images in the observations of E environments."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apex.data.observations import Observations
from apex.data.schema import Array
from apex.envs.spec import EnvSpec

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


class ObservationStacker:
    """Stacks the frames of each image of the observations; other parts stay as they are.

    Args:
        spec: specification of the environments.
    """

    def __init__(self, spec: EnvSpec) -> None:
        depths = {p.name: spec.frame_stack if p.kind == "image" else 0 for p in spec.all_parts}
        self._stackers = {name: FrameStacker(depth) for name, depth in depths.items()}

    def push(self, observations: Observations, first: Bools) -> Observations:
        """Add the newest observations, `[E, ...]` each, as `FrameStacker.push` does."""
        if isinstance(observations, dict):
            return {
                name: self._stackers[name].push(array, first)
                for name, array in observations.items()
            }
        return self._stackers[""].push(observations, first)
