"""What algorithms that learn from sequences have in common: their items and their batches."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from apex.acting.decisions import Inputs
from apex.acting.sequence_accumulator import SequenceAccumulator, SequenceLayout
from apex.algos.base import Algorithm
from apex.algos.optimization import OptimizerSection
from apex.config.sections import NonNegativeInt, PositiveInt
from apex.data.chunks import Items
from apex.data.schema import LEARNER_STEP, Array, Arrays, Column, Schema
from apex.errors import CorruptItemsError
from apex.networks.recurrent_cores import SequenceInputs
from apex.networks.sequence import Layers

CORE_STATE = "core_state"


class SequenceSection(OptimizerSection, frozen=True):
    """The part of an `[algorithm]` section about the network, with or without memory."""

    conv: tuple[tuple[PositiveInt, PositiveInt, PositiveInt], ...] = (
        (32, 8, 4),
        (64, 4, 2),
        (64, 3, 1),
    )
    """Output channels, kernel and stride of each convolution; unused without images."""
    residual: tuple[PositiveInt, ...] = ()
    """Channels of the sections of a residual network instead of `conv`; (16, 32, 32) is the deep
    network of IMPALA. Unused without images."""
    standardize_frames: bool = False
    """Each stack of frames gets mean 0 and variance 1; otherwise it is scaled by 1/255. Unused
    without images."""
    hidden: tuple[PositiveInt, ...] = (512,)
    """Widths of the layers between the torso and the LSTM or the heads."""
    lstm: NonNegativeInt = 0
    """Width of the LSTM, which sees the last action and reward too; 0: none."""

    @property
    def layers(self) -> Layers:
        """Of the network, below its heads."""
        return Layers(self.conv, self.residual, self.hidden, self.lstm, self.standardize_frames)


class SequenceAlgorithm(Algorithm):
    """An algorithm whose items are sequences (`apex/acting/sequence_accumulator.py`)."""

    @abstractmethod
    def layout(self) -> SequenceLayout:
        """What a sequence consists of."""

    @abstractmethod
    def initial_priorities(self, columns: Arrays, extras: Arrays) -> npt.NDArray[np.float64]:
        """Priorities `[M]` of sequences, by their columns and the policy's extras in each row."""

    extra_names: Sequence[str]
    """The policy's extras that are stored or that initial priorities are computed from."""

    def schema(self) -> Schema:
        return self.layout().schema(self.spec)

    def accumulator(self, num_envs: int, chunk_length: int) -> SequenceAccumulator:
        return SequenceAccumulator(
            self.spec,
            num_envs,
            self.layout(),
            chunk_length,
            self.extra_names,
            self.initial_priorities,
        )

    def collate(self, items: Items) -> Arrays:
        """`[B, L, ...]`: stacked observations, what was done and seen, and all other columns.

        Raises:
            CorruptItemsError: an item's action is none, or it has not one frame for each row.
        """
        self._check(items)
        columns = {name: a for name, a in items.columns.items() if name != LEARNER_STEP}
        is_first = columns["is_first"] = columns["is_first"].astype(np.bool_)
        columns["is_last"] = columns["is_last"].astype(np.bool_)
        for name, last in (("action", "last_action"), ("reward", "last_reward")):
            before = np.concatenate([columns[last][:, None], columns[name][:, :-1]], axis=1)
            before[is_first] = 0
            columns[last] = before
        if items.frames is not None:
            columns["observation"] = stacked(items.frames, is_first, self.spec.frame_stack)
        columns["probability"] = items.probabilities.astype(np.float32)
        return columns

    def _check(self, items: Items) -> None:
        """What the schema cannot say: an actor may have sent it all the same."""
        columns, length = items.columns, items.columns["action"].shape[1]
        actions = np.concatenate([columns["action"], columns["last_action"][:, None]], axis=1)
        bad = self.spec.bad_actions(actions).any(axis=1)
        frame_count = self.spec.frame_stack - 1 + length
        if items.frame_count is not None:
            bad |= items.frame_count != frame_count
        if bad.any():
            raise CorruptItemsError(
                f"expected {self.spec.actions_text} and {frame_count} frames of each item",
                items.item_ids[bad].tolist(),
            )


def stacked(frames: npt.NDArray[np.uint8], is_first: Array, depth: int) -> Array:
    """The policy's input in each row: its last `depth` frames, none of an earlier episode.

    Args:
        frames: `[B, depth - 1 + L, ...]`.
        is_first: `[B, L] bool`.
        depth: of the stack.

    Returns:
        `[B, L, depth, ...]`.
    """
    length = is_first.shape[1]
    stacks = np.stack([frames[:, k : k + length] for k in range(depth)], axis=2)
    rows = np.arange(length)
    begun = np.maximum.accumulate(np.where(is_first, rows, -depth), axis=1)
    age = rows - begun  # rows since the episode began, as far as this item knows
    batch, row, frame = np.nonzero(age[:, :, None] < np.arange(depth - 1, -1, -1))
    stacks[batch, row, frame] = 0
    return stacks


def acting_inputs(inputs: Inputs, device: torch.device) -> SequenceInputs:
    """One step of E environments as sequences of length one, `[E, 1, ...]`."""

    def tensor(array: Array) -> Tensor:
        return torch.from_numpy(array).to(device).unsqueeze(1)

    first = torch.zeros((len(inputs.observations), 1), dtype=torch.bool, device=device)
    return SequenceInputs(
        tensor(inputs.observations),
        tensor(inputs.last_actions),
        tensor(inputs.last_rewards),
        first,  # who begins an episode has a state of zeros already
        torch.from_numpy(inputs.core_state).to(device),
    )


def learning_inputs(tensors: dict[str, Tensor]) -> SequenceInputs:
    """The sequences of a batch that `SequenceAlgorithm.collate` made."""
    is_first = tensors["is_first"]
    empty = is_first.new_zeros((len(is_first), 0), dtype=torch.float32)
    return SequenceInputs(
        tensors["observation"],
        tensors["last_action"].long(),
        tensors["last_reward"],
        is_first,
        tensors.get(CORE_STATE, empty),
    )


def core_state_column(core_size: int) -> tuple[Column, ...]:
    """The recurrent state before the first row, where the network has one."""
    return (Column(CORE_STATE, "float32", (core_size,)),) if core_size else ()
