"""Base class of algorithms that learn from sequences: items, batches, network inputs."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from apex.acting.decisions import Inputs
from apex.acting.observation_columns import (
    PARTS_RULE,
    forbidden_actions,
    frames_schema,
    invalid_observations,
)
from apex.acting.sequence_accumulator import SequenceAccumulator, SequenceLayout
from apex.algos.base import Algorithm
from apex.algos.batches import PackedSequences, Sequences, joined, map_tensors
from apex.algos.optimization import OptimizerConfig
from apex.algos.policy import InputTensors
from apex.config.sections import NonNegativeInt, PositiveInt
from apex.data.chunks import Items
from apex.data.observations import ACTION_MASK, column_name
from apex.data.schema import Array, Arrays, Column, Schema
from apex.errors import CorruptItemsError
from apex.networks.recurrent_cores import SequenceInputs
from apex.networks.sequence import Layers

CORE_STATE = "core_state"


class SequenceAlgorithm(Algorithm):
    """An algorithm whose items are sequences (`apex/acting/sequence_accumulator.py`)."""

    class Config(OptimizerConfig, frozen=True):
        """The part of an `[algorithm]` section about the network, recurrent or not."""

        conv: tuple[tuple[PositiveInt, PositiveInt, PositiveInt], ...] = (
            (32, 8, 4),
            (64, 4, 2),
            (64, 3, 1),
        )
        """Output channels, kernel size and stride (pixels) of each convolution; unused without
        images."""
        conv_by_part: dict[str, tuple[tuple[PositiveInt, PositiveInt, PositiveInt], ...]] = (
            msgspec.field(default_factory=dict)
        )
        """Convolutions of some images of an observation with named parts, by name; the others have
        `conv`."""
        residual: tuple[PositiveInt, ...] = ()
        """Channels of each section of a residual network, used instead of `conv`; (16, 32, 32) is
        IMPALA's deep network. Unused without images."""
        standardize_frames: bool = False
        """Normalise each stack of frames to mean 0 and variance 1 instead of scaling it by 1/255.
        Unused without images."""
        hidden: tuple[PositiveInt, ...] = (512,)
        """Units in each fully connected layer between the torso and the LSTM or the heads."""
        lstm: NonNegativeInt = 0
        """Units of the LSTM, which also takes the last action and reward as input; 0: no LSTM."""

        @property
        def layers(self) -> Layers:
            """The network's layers below its heads."""
            return Layers(self.conv, self.residual, self.hidden, self.lstm, self.standardize_frames)

    config: Any

    @abstractmethod
    def layout(self) -> SequenceLayout:
        """The length, period and columns of a sequence."""

    @abstractmethod
    def initial_priorities(self, columns: Arrays, extras: Arrays) -> npt.NDArray[np.float64]:
        """Priorities `[M]` of M sequences, from their columns and the policy's extra outputs.

        Args:
            columns: `[M, L, ...]` each, or `[M, ...]` for columns of the first row only.
            extras: the policy's extra outputs in each row, `[M, L, ...]` each.
        """

    extra_names: Sequence[str]
    """The policy's extra outputs that are stored or used for initial priorities."""

    def schema(self) -> Schema:
        return self.layout().schema(self.spec)

    def new_frames(self) -> int:
        return self.layout().period

    def accumulator(self, num_envs: int, chunk_length: int) -> SequenceAccumulator:
        return SequenceAccumulator(
            self.spec,
            num_envs,
            self.layout(),
            chunk_length,
            self.extra_names,
            self.initial_priorities,
        )

    def collate(self, items: Items) -> Sequences:
        """A batch of the items, on the CPU.

        Raises:
            CorruptItemsError: an item has an action that the environment does not take, a choice
                that does not exist, a mask that allows no action, or not one frame for each row.
        """
        self._check(items)
        fields = self._fields(items)
        frames = None
        if items.frames is not None:
            is_first = fields["is_first"].numpy()
            frames = torch.from_numpy(stacked(items.frames, is_first, self.spec.frame_stack))
        column = frames_schema(self.spec, 1)
        return Sequences(observation=joined(frames, self._arrays(items), column), **fields)

    def pack(self, items: Items) -> Any:
        """`PackedSequences`; what `collate` makes, if there are no frames or it is overridden.

        Raises:
            CorruptItemsError: as `collate`.
        """
        column = frames_schema(self.spec, 1)
        overridden = type(self).collate is not SequenceAlgorithm.collate
        if items.frames is None or column is None or overridden:
            return self.collate(items)
        self._check(items)
        frames = torch.from_numpy(items.frames)
        return PackedSequences(frames, self._fields(items), column, self._arrays(items))

    def _arrays(self, items: Items) -> dict[str, Tensor]:
        """The parts of the observation that are not images, by name."""
        return {
            part.name: torch.from_numpy(items.columns[column_name(part.name)])
            for part in self.spec.arrays
        }

    def _fields(self, items: Items) -> dict[str, Any]:
        """The fields of a batch but the observation."""
        columns = items.columns
        is_first = columns["is_first"].astype(np.bool_)
        empty = np.zeros((len(items), 0), np.float32)
        masks = {}
        if self.spec.has_action_mask:
            allowed = torch.from_numpy(columns[column_name(ACTION_MASK)])
            masks = {"action_mask": allowed.bool()}
        return {
            **masks,
            **{name: torch.from_numpy(columns[name]) for name in ("action", "reward", "discount")},
            "is_first": torch.from_numpy(is_first),
            "is_last": torch.from_numpy(columns["is_last"].astype(np.bool_)),
            "last_action": _shifted(columns["last_action"], columns["action"], is_first),
            "last_reward": _shifted(columns["last_reward"], columns["reward"], is_first),
            "core_state": torch.from_numpy(columns.get(CORE_STATE, empty)),
            "probability": torch.from_numpy(items.probabilities.astype(np.float32)),
            "episode_edges": tuple(np.flatnonzero(is_first.any(axis=0)).tolist()),
            "extras": {
                column.name: torch.from_numpy(columns[column.name])
                for column in self.layout().row_extras
            },
        }

    def _check(self, items: Items) -> None:
        """Check what the schema does not: actions, choices, masks and the number of frames."""
        columns, length = items.columns, items.columns["action"].shape[1]
        is_last = columns["is_last"].astype(np.bool_)  # these rows have no action
        wrong = self.spec.bad_actions(columns["action"])
        wrong |= forbidden_actions(self.spec, columns) & ~is_last
        bad = (wrong | invalid_observations(self.spec, columns)).any(axis=1)
        # Where an episode begins, the last action is 0, which may be outside the bounds.
        last = columns["last_action"]
        none = columns["is_first"][:, 0].astype(np.bool_)
        none &= (last == 0).reshape(len(last), -1).all(axis=1)
        bad |= self.spec.bad_actions(last) & ~none
        frame_count = self.spec.frame_stack - 1 + length
        if items.frame_count is not None:
            bad |= items.frame_count != frame_count
        if bad.any():
            raise CorruptItemsError(
                f"expected {self.spec.actions_text} and {frame_count} frames in each item"
                f"{PARTS_RULE if self.spec.parts else ''}",
                items.item_ids[bad].tolist(),
            )


def stacked(frames: npt.NDArray[np.uint8], is_first: Array, depth: int) -> Array:
    """Stack the last `depth` frames of each row; frames of an earlier episode become zero.

    Args:
        frames: `[B, depth - 1 + L, ...]`.
        is_first: `[B, L] bool`, the row is the first of an episode.
        depth: frames in a stack.

    Returns:
        `[B, L, depth, ...]`.
    """
    length = is_first.shape[1]
    stacks = np.stack([frames[:, k : k + length] for k in range(depth)], axis=2)
    rows = np.arange(length)
    begun = np.maximum.accumulate(np.where(is_first, rows, -depth), axis=1)
    age = rows - begun  # rows since the episode began; at least `depth` if it began earlier
    batch, row, frame = np.nonzero(age[:, :, None] < np.arange(depth - 1, -1, -1))
    stacks[batch, row, frame] = 0
    return stacks


def acting_inputs(
    inputs: Inputs | InputTensors, device: torch.device | None = None
) -> SequenceInputs:
    """One step of E environments as sequences of length one, `[E, 1, ...]`.

    Args:
        inputs: arrays, or tensors on the policy's device.
        device: copies arrays to this device; None: the CPU.
    """
    if isinstance(inputs, Inputs):
        inputs = InputTensors.of(inputs, device or torch.device("cpu"))
    rewards = inputs.last_rewards
    first = torch.zeros((len(rewards), 1), dtype=torch.bool, device=rewards.device)
    return SequenceInputs(
        map_tensors(inputs.observations, lambda tensor: tensor.unsqueeze(1)),
        inputs.last_actions.unsqueeze(1),
        inputs.last_rewards.unsqueeze(1),
        first,  # no reset needed: the state is already zero where an episode begins
        inputs.core_state,
    )


def learning_inputs(batch: Sequences) -> SequenceInputs:
    """The network inputs of a batch, `[B, L, ...]`."""
    return SequenceInputs(
        batch.observation,
        batch.last_action.long(),
        batch.last_reward,
        batch.is_first,
        batch.core_state,
        batch.episode_edges,
    )


def _shifted(initial: Array, values: Array, is_first: Array) -> Tensor:
    """Shift values by one row, `[B, L, ...]`, starting with `initial`; 0 at episode starts."""
    shifted = np.concatenate([initial[:, None], values[:, :-1]], axis=1)
    shifted[is_first] = 0
    return torch.from_numpy(shifted)


def core_state_column(core_size: int) -> tuple[Column, ...]:
    """The column of the recurrent state before the first row; empty if `core_size` is 0."""
    return (Column(CORE_STATE, "float32", (core_size,)),) if core_size else ()
