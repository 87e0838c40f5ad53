"""Batches of n-step transitions and of sequences, and their packed forms.

A packed batch has each frame once; `expanded` builds the frame stacks of the network's input from
it, on the device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from apex.data.schema import FramesColumn

Observation = Tensor | dict[str, Tensor]
"""`[B, ...]`, or one such tensor for each part of an observation that has named parts."""

_NO_EXTRAS: Any = MappingProxyType({})


class Transitions(NamedTuple):
    """B n-step transitions, on the learner's device."""

    observation: Observation
    """`[B, *policy_shape]`, at which the action was chosen."""
    action: Tensor
    """`[B, *action shape]`: int32, or float32 where actions are continuous."""
    n_step_return: Tensor
    """`[B] float32`: sum of gamma^k r_{t+k} over the k < n rewards of the transition."""
    discount: Tensor
    """`[B] float32`: gamma^n of the bootstrap value; 0 after a termination."""
    next_observation: Observation
    """`[B, *policy_shape]`, the bootstrap observation, n steps later."""
    probability: Tensor
    """`[B] float32`: P(i), the probability with which the item was sampled."""
    action_mask: Tensor | None = None
    """`[B, num_actions] bool`, the allowed actions; None: all."""
    next_action_mask: Tensor | None = None
    """`[B, num_actions] bool`, the allowed actions at the bootstrap observation; None: all."""
    extras: dict[str, Tensor] = _NO_EXTRAS
    """`[B, ...]` each: the policy's extra outputs (`TransitionAlgorithm.extra_columns`)."""


class Sequences(NamedTuple):
    """B sequences of L rows, on the learner's device (`apex/acting/sequence_accumulator.py`)."""

    observation: Observation
    """`[B, L, *policy_shape]`."""
    action: Tensor
    """`[B, L, *action shape]`: int32, or float32 where actions are continuous."""
    reward: Tensor
    """`[B, L] float32`, the reward of the action."""
    discount: Tensor
    """`[B, L] float32`: gamma, or 0 after a termination."""
    is_first: Tensor
    """`[B, L] bool`: the row is the first of an episode."""
    is_last: Tensor
    """`[B, L] bool`: the row is the final observation of a truncated episode. It has no action and
    no loss."""
    last_action: Tensor
    """`[B, L, *action shape]`, the previous row's action; 0 where an episode begins."""
    last_reward: Tensor
    """`[B, L] float32`, the previous row's reward; 0 where an episode begins."""
    core_state: Tensor
    """`[B, core_size] float32`, the recurrent state before the first row."""
    probability: Tensor
    """`[B] float32`: P(i), the probability with which the item was sampled."""
    episode_edges: tuple[int, ...] | None
    """Rows at which an episode begins in any of the sequences. They are host integers, so that a
    recurrent network can split its loop there without waiting for the device. None: unknown, as in
    a CUDA graph, which is the same for every batch."""
    action_mask: Tensor | None = None
    """`[B, L, num_actions] bool`, the allowed actions; None: all."""
    extras: dict[str, Tensor] = _NO_EXTRAS
    """`[B, L, ...]` each: the policy's extra outputs in each row."""


class PackedTransitions(NamedTuple):
    """B n-step transitions of observations with images, with each frame once."""

    frames: Tensor
    """`[B, frame_stack + n, *frame shape] uint8`."""
    next_start: Tensor
    """`[B] int64`, index of the first frame of the bootstrap observation."""
    frame_stack: int
    """Frames in an observation; the first observation begins at frame 0."""
    columns: dict[str, Any]
    """The fields of `Transitions` but the observations."""
    frames_column: FramesColumn | None = None
    """The images of a frame; None: one plain image."""
    arrays: dict[str, Tensor] = _NO_EXTRAS
    """The parts of the observation that are not images, `[B, ...]` each."""
    next_arrays: dict[str, Tensor] = _NO_EXTRAS
    """Those of the bootstrap observation."""

    def expanded(self) -> Transitions:
        """The transitions with their frame stacks, on the frames' device.

        It runs the same operations for every batch of a shape and reads no tensor value.
        """
        count, depth = self.frames.shape[:2]
        begins = torch.arange(0, count * depth, depth, device=self.frames.device)
        places = torch.arange(self.frame_stack, device=self.frames.device)
        chosen = (begins + self.next_start).unsqueeze(1) + places
        stacks = self.frames.flatten(0, 1).index_select(0, chosen.flatten())
        next_frames = stacks.view(count, self.frame_stack, *self.frames.shape[2:])
        return Transitions(
            observation=joined(self.frames[:, : self.frame_stack], self.arrays, self.frames_column),
            next_observation=joined(next_frames, self.next_arrays, self.frames_column),
            **self.columns,
        )


class PackedSequences(NamedTuple):
    """B sequences of L rows of observations with images, with each frame once."""

    frames: Tensor
    """`[B, frame_stack - 1 + L, *frame shape] uint8`."""
    columns: dict[str, Any]
    """The fields of `Sequences` but the observation."""
    frames_column: FramesColumn | None = None
    """The images of a frame; None: one plain image."""
    arrays: dict[str, Tensor] = _NO_EXTRAS
    """The parts of the observation that are not images, `[B, L, ...]` each."""

    def expanded(self) -> Sequences:
        """The sequences with their frame stacks, on the frames' device.

        It runs the same operations for every batch of a shape and reads no tensor value.
        """
        frames = stacked_rows(self.frames, self.columns["is_first"])
        return Sequences(
            observation=joined(frames, self.arrays, self.frames_column), **self.columns
        )


def joined(
    frames: Tensor | None, arrays: Mapping[str, Tensor], column: FramesColumn | None
) -> Observation:
    """An observation from its images and its other parts.

    Args:
        frames: stacks of frames, `[..., frame_stack, *frame shape]`; None without images.
        arrays: the other parts by name; a plain observation's name is empty.
        column: the images of a frame; None: one plain image, or none.
    """
    if frames is None:
        return arrays[""] if "" in arrays else dict(arrays)
    images = frames if column is None else column.split(frames)
    return {**images, **arrays} if isinstance(images, dict) else images


def stacked_rows(frames: Tensor, is_first: Tensor) -> Tensor:
    """Stack the newest frames of each row; frames of an earlier episode become zero.

    Args:
        frames: `[B, depth - 1 + L, *shape] uint8`.
        is_first: `[B, L] bool`, the row is the first of an episode.

    Returns:
        `[B, L, depth, *shape] uint8`, contiguous.
    """
    count, length = is_first.shape
    depth = frames.shape[1] - length + 1
    # The number of the episode that each frame belongs to; 0: it began before the first row.
    episode = nn.functional.pad(is_first.cumsum(1), (depth - 1, 0))
    same = episode.unfold(1, depth, 1) == episode[:, depth - 1 :].unsqueeze(2)
    stacks = frames.unfold(1, depth, 1).movedim(-1, 2)
    kept = same.reshape(count, length, depth, *(1 for _ in frames.shape[2:]))
    # Without `out` the result's memory would be in the order of the overlapping views.
    out = torch.empty(stacks.shape, dtype=torch.uint8, device=frames.device)
    return torch.mul(stacks, kept, out=out)


def expanded(batch: Any) -> Any:
    """Expand a packed batch; any other batch is returned unchanged."""
    return batch.expanded() if isinstance(batch, (PackedTransitions, PackedSequences)) else batch


class Padded(NamedTuple):
    """A batch with rows that only fill it up to a fixed size."""

    batch: Any
    item_weights: Tensor
    """`[B] float32`: 1, or 0 for a row that must not count."""


def map_tensors(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to each tensor of a nested batch and keep the nesting.

    Args:
        batch: nested named tuples, tuples, dictionaries, tensors and NumPy arrays; anything else
            is returned unchanged.
        function: maps a tensor to a tensor.
    """
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, np.ndarray):
        reversed_view = min(batch.strides, default=0) < 0  # torch takes no negative strides
        return function(torch.from_numpy(batch.copy() if reversed_view else batch))
    if isinstance(batch, (dict, MappingProxyType)):
        return {name: map_tensors(part, function) for name, part in batch.items()}
    if isinstance(batch, tuple):
        parts = [map_tensors(part, function) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else tuple(parts)
    return batch
