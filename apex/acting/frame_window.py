"""Compressed frames of one environment, kept while items still need them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from apex.data.chunks import FrameRanges

Rows = npt.NDArray[np.int64]


class FrameRange(NamedTuple):
    """The consecutive frames of one item, numbered from the environment's start."""

    first: int
    end: int
    """One past the last."""
    padding: int
    """Zero frames before the first one, near the start of an episode."""


def cut_frames(kept: list[bytes], first: Rows, last: Rows, padding: Rows) -> FrameRanges:
    """The frames of M items in the form of a chunk, each frame stored once.

    Args:
        kept: compressed frames of one environment.
        first: `[M]`, index of each item's first frame in `kept`.
        last: `[M]`, index of each item's last frame in `kept`.
        padding: `[M]`, zero frames before the first one, near the start of an episode.
    """
    begin = int(first.min())
    kept = kept[begin : int(last.max()) + 1]
    places = first - begin
    edges = np.zeros(len(kept) + 1, dtype=np.int64)
    np.add.at(edges, places, 1)
    np.add.at(edges, last + 1 - begin, -1)
    used = np.cumsum(edges[:-1]) > 0
    if not used.all():  # an episode was cut before its first transition
        kept = [frame for frame, is_used in zip(kept, used) if is_used]
        places = np.cumsum(used)[places] - 1
    return FrameRanges(
        first_frame=places.astype(np.int32),
        frame_count=(last - first + 1).astype(np.int32),
        pad_count=padding.astype(np.int32),
        frame_lengths=np.array([len(frame) for frame in kept], dtype=np.int32),
        blob=b"".join(kept),
    )


class FrameWindow:
    """Keeps each compressed frame until no item can need it.

    Args:
        stack: frames in one input of the policy.
    """

    def __init__(self, stack: int) -> None:
        self._stack = stack
        self._frames: list[bytes] = []
        self._base = 0
        """Number of the first frame in `_frames`."""
        self._in_episode = 0
        """Frames of the current episode so far."""

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def end(self) -> int:
        """The number of the next frame."""
        return self._base + len(self._frames)

    def append(self, frame: bytes) -> None:
        """Add the next frame of the episode, compressed."""
        self._frames.append(frame)
        self._in_episode += 1

    def begin_episode(self) -> None:
        """Start a new episode with the next frame."""
        self._in_episode = 0

    def stack_begin(self) -> tuple[int, int]:
        """First frame and padding of the newest frame stack."""
        missing = max(0, self._stack - self._in_episode)
        return self.end - (self._stack - missing), missing

    def cut(self, ranges: Sequence[FrameRange]) -> FrameRanges:
        """The frames of items in the form of a chunk, each frame stored once."""
        first, end, padding = np.array(ranges, dtype=np.int64).T
        return cut_frames(self._frames, first - self._base, end - 1 - self._base, padding)

    def forget(self, needed: int | None) -> None:
        """Drop the frames before `needed`; None: before the newest frame stack."""
        drop = max(0, (self.end - self._stack if needed is None else needed) - self._base)
        del self._frames[:drop]
        self._base += drop
