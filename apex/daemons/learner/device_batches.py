"""Copy batches to a GPU, asynchronously to training."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from apex.daemons.learner.batch_layout import BatchLayout, DistinctArrays
from apex.errors import ApexError, DeviceError, DeviceMemoryError

OUT_OF_MEMORY = ("out of memory", "memory allocation", "allocate memory")
"""Texts of the errors that torch and CUDA raise when memory is short."""


def transfer_to(device: torch.device) -> Callable[[Any], Any]:
    """Return a function that moves batches to a device; on the CPU it does nothing."""
    return Transfer(pinned, CudaCopy(device)) if device.type == "cuda" else lambda batch: batch


class Transfer:
    """Moves batches to a device, on the threads that prepare them, with one copy for each batch.

    A batch is first written to a staging buffer on the host. The buffers are reused; there are as
    many as batches were moved at the same time.

    Args:
        allocate: makes a host buffer of some bytes, `[N] uint8`.
        send: copies the filled part of a buffer to the device; the copy is complete when it
            returns, so the training loop never waits for one.
    """

    def __init__(self, allocate: Callable[[int], Tensor], send: Callable[[Tensor], Tensor]) -> None:
        self._allocate, self._send = allocate, send
        self._idle: deque[StagingBuffer] = deque()

    def __call__(self, batch: Any) -> Any:
        """Return a copy of the batch on the device: views of one tensor.

        Raises:
            DeviceMemoryError: there is no memory for a staging buffer.
            DeviceError: a staging buffer could not be made for another reason.
        """
        distinct = DistinctArrays(batch)
        layout = BatchLayout.of(distinct.arrays)
        try:
            staging = self._idle.pop()
        except IndexError:
            staging = StagingBuffer(self._allocate)
        try:
            buffer = staging.of(layout.nbytes)
            for view, array in zip(layout.views(buffer), distinct.arrays):
                view.copy_(array)
            moved = self._send(buffer)
        finally:
            self._idle.append(staging)
        return distinct.rebuilt(layout.views(moved))


class StagingBuffer:
    """A host buffer that grows to the largest batch that it has held.

    Args:
        allocate: makes a host buffer of some bytes, `[N] uint8`.
    """

    def __init__(self, allocate: Callable[[int], Tensor]) -> None:
        self._allocate = allocate
        self._buffer: Tensor | None = None

    def of(self, nbytes: int) -> Tensor:
        """The first `nbytes` bytes of the buffer.

        Raises:
            DeviceMemoryError: there is no memory for a larger buffer.
            DeviceError: a larger buffer could not be made for another reason.
        """
        if self._buffer is None or len(self._buffer) < nbytes:
            self._buffer = None  # the larger one may take its memory
            try:
                self._buffer = self._allocate(nbytes)
            except RuntimeError as error:
                raise _staging_error(error, nbytes) from error
        return self._buffer[:nbytes]


def _staging_error(error: RuntimeError, nbytes: int) -> ApexError:
    """The error of a failed allocation, with its remedy if memory is short."""
    what = f"cannot allocate {nbytes} bytes of pinned memory for a batch: {error}"
    text = str(error).lower()
    if isinstance(error, torch.OutOfMemoryError) or any(part in text for part in OUT_OF_MEMORY):
        return DeviceMemoryError(
            f"{what}; lower learner.batch_size or learner.decode_threads, or raise the limit of "
            "locked memory"
        )
    return DeviceError(f"{what}; this is not a lack of memory: check the device and its driver")


def pinned(nbytes: int) -> Tensor:
    """A host buffer `[nbytes] uint8` that a GPU copies from without the CPU."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)


class CudaCopy:
    """Copies pinned bytes to a GPU on a stream of its own.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, staged: Tensor) -> Tensor:
        """Return a copy on the device; blocks until it is complete."""
        with torch.cuda.stream(self._stream):
            moved = staged.to(self._device, non_blocking=True)
            done = self._stream.record_event()
        # Free the memory only after the training stream has read it, not once this one wrote it.
        moved.record_stream(torch.cuda.default_stream(self._device))
        done.synchronize()
        return moved
