"""Copy results of updates and parameters from the device to the host, without waiting for it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from apex.networks import parameters

COPIES = 2
"""Copies of the parameters: one is encoded while the next one is made."""


class HostCopy:
    """A copy of a tensor on the host, made after the work that is queued on the device.

    Args:
        tensor: on any device. It may be overwritten by later work on the device.
        memory: pinned memory of the same shape, float64; None on a CPU, where the tensor is copied
            at once.
    """

    def __init__(self, tensor: Tensor, memory: Tensor | None = None) -> None:
        self._event: torch.cuda.Event | None = None
        if memory is None:
            self._tensor = tensor.double()
            if self._tensor is tensor:
                self._tensor = tensor.clone()
            return
        self._tensor = memory
        memory.copy_(tensor.double(), non_blocking=True)
        if tensor.device.type == "cuda":
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> npt.NDArray[np.float64]:
        """Return the values; blocks until the copy is complete."""
        if self._event is not None:
            self._event.synchronize()
        values: npt.NDArray[np.float64] = self._tensor.numpy().copy()
        return values


def pinned(shape: Sequence[int]) -> Tensor:
    """Pinned memory for float64 numbers."""
    return torch.empty(tuple(shape), dtype=torch.float64, pin_memory=True)


class HostCopies:
    """Copies the results of consecutive updates through a ring of pinned memory.

    Args:
        device: of the results.
        unread: most copies that are not read at a time.
        allocate: makes the ring's memory, float64; by default there is none on a CPU.
    """

    def __init__(
        self,
        device: torch.device,
        unread: int,
        allocate: Callable[[Sequence[int]], Tensor] = pinned,
    ) -> None:
        self._direct, self._allocate = device.type != "cuda" and allocate is pinned, allocate
        self._ring: list[Tensor | None] = [None] * unread
        self._next = 0

    def copy(self, tensor: Tensor) -> HostCopy:
        """Begin to copy a tensor. The copy must be read before `unread` further ones begin."""
        if self._direct:
            return HostCopy(tensor)
        place, self._next = self._next, (self._next + 1) % len(self._ring)
        memory = self._ring[place]
        if memory is None or memory.shape != tensor.shape:
            memory = self._ring[place] = self._allocate(tensor.shape)
        return HostCopy(tensor, memory)


def read_numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    """0-dimensional tensors as numbers, by one copy from each device; waits for them."""
    found: dict[str, float] = {}
    for device in {value.device for value in values.values()}:
        here = {name: value.double() for name, value in values.items() if value.device == device}
        found.update(zip(here, torch.stack(list(here.values())).tolist()))
    return {name: found[name] for name in values}


class ParameterEncoder:
    """Encodes a network's parameters; on a GPU by a thread, from pinned memory.

    Args:
        network: whose parameters to encode.
        threaded: copy the parameters on the calling thread and encode the copy on another one;
            False: encode on the calling thread, since on a CPU a copy takes as long.
    """

    def __init__(self, network: nn.Module, *, threaded: bool) -> None:
        self._network = network
        self._free: queue.SimpleQueue[dict[str, Tensor]] = queue.SimpleQueue()
        self._thread: ThreadPoolExecutor | None = None
        if threaded:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="encode")
            for _ in range(COPIES):
                self._free.put(_memory_for(network))

    def encode(self) -> Future[bytes]:
        """Encode the parameters as they are after the work that is queued on the device."""
        if self._thread is None:
            done: Future[bytes] = Future()
            done.set_result(parameters.encode(self._network))
            return done
        copy, tensors, event = self._free.get(), self._network.state_dict(), None
        for name, tensor in tensors.items():
            copy[name].copy_(tensor, non_blocking=True)
        if any(tensor.device.type == "cuda" for tensor in tensors.values()):
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        return self._thread.submit(self._encode, copy, event)

    def _encode(self, copy: dict[str, Tensor], event: Any) -> bytes:
        try:
            if event is not None:
                event.synchronize()
            return parameters.encode_tensors(copy)
        finally:
            self._free.put(copy)


def _memory_for(network: nn.Module) -> dict[str, Tensor]:
    """Memory on the host for a network's parameters and buffers; pinned if they are on a GPU."""
    return {
        name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.device.type == "cuda")
        for name, tensor in network.state_dict().items()
    }
