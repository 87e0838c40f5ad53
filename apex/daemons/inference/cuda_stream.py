"""A CUDA stream that computes batches: page-locked memory, events, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from apex.execution.recorders import capture

WARM_UPS = 3
"""Calls before a recording: they load kernels and allocate what libraries keep."""

Outputs = Mapping[str, Tensor]


class Mark(Protocol):
    """A place in a stream's queue of work."""

    def query(self) -> bool:
        """Whether the work before it is done."""

    def synchronize(self) -> None:
        """Wait until the work before it is done."""


class Stream(Protocol):
    """A queue of work on a device, which is done in order while the host goes on."""

    def context(self) -> AbstractContextManager[Any]:
        """Within it, the work of this thread is put into this queue."""

    def host_tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor on the host that can be copied from and to the device without waiting."""

    def mark(self) -> Mark:
        """Mark the end of the work so far."""

    def record(self, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """Record the device's work in one call of a function; call it in `context`.

        Returns:
            A function that repeats the work on the same memory and returns the same tensors.

        Raises:
            RuntimeError: the work cannot be recorded.
        """


class CudaStream:
    """A stream of its own on a CUDA device; a recording is a CUDA graph.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._stream.wait_stream(torch.cuda.current_stream(device))
        self._pool = torch.cuda.graph_pool_handle()
        """Memory of all recordings; they run one after the other, so that they can share it."""

    def context(self) -> AbstractContextManager[Any]:
        """Within it, CUDA's work of this thread is put into this stream."""
        return torch.cuda.stream(self._stream)

    def host_tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A page-locked tensor of zeros."""
        return torch.zeros(tuple(shape), dtype=dtype, pin_memory=True)

    def mark(self) -> Mark:
        """Mark the end of the work so far; waiting for it leaves the core to other threads."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event

    def record(self, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """Capture one call as a CUDA graph, after `WARM_UPS` calls."""
        for _ in range(WARM_UPS):
            function()
        repeat, outputs = capture(function, self._stream, self._pool)

        def replay() -> Outputs:
            repeat()
            return outputs

        return replay
