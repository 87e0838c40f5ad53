"""Brings batches to a GPU while it trains: from pinned memory, on a stream of their own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from apex.data.schema import Array, Arrays
from apex.errors import DeviceMemoryError


def transfer_to(device: torch.device) -> Callable[[Arrays], Mapping[str, Any]]:
    """Brings batches to a device; on the CPU they are there already."""
    return Transfer(device) if device.type == "cuda" else lambda arrays: arrays


class Transfer:
    """Moves batches to a device, on the threads that prepare them.

    A batch is there when the call returns, so the training loop waits for no copy; as many copies
    are under way as there are threads.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, arrays: Arrays) -> dict[str, Tensor]:
        """The arrays as tensors on the device."""
        with torch.cuda.stream(self._stream):
            tensors = copied(arrays, self._copy)
            done = self._stream.record_event()
        done.synchronize()
        return tensors

    def _copy(self, array: Array) -> Tensor:
        try:
            pinned = torch.from_numpy(array).pin_memory()
        except RuntimeError as error:
            raise DeviceMemoryError(
                f"no pinned memory for a batch: {error} Lower learner.batch_size or "
                "learner.prefetch, or raise the limit of locked memory"
            ) from None
        tensor = pinned.to(self._device, non_blocking=True)
        # It is freed when the training stream has read it, not when this one has written it.
        tensor.record_stream(torch.cuda.default_stream(self._device))
        return tensor


def copied(arrays: Arrays, copy: Callable[[Array], Tensor]) -> dict[str, Tensor]:
    """Copies of arrays; those that overlap, as views of one array, are copied as that one.

    The two observations of a transition share all but n of their frames.

    Args:
        arrays: by name.
        copy: copies a contiguous array.
    """
    viewed: Counter[int] = Counter()
    for array in arrays.values():
        viewed[id(_owner(array))] += array.nbytes
    owners: dict[int, Tensor] = {}
    tensors = {}
    for name, array in arrays.items():
        owner = _owner(array)
        if viewed[id(owner)] <= owner.nbytes:
            tensors[name] = copy(np.ascontiguousarray(array))
            continue
        if id(owner) not in owners:
            owners[id(owner)] = copy(owner)
        size = array.itemsize
        offset = array.ctypes.data - owner.ctypes.data
        strides = [stride // size for stride in array.strides]
        tensors[name] = owners[id(owner)].as_strided(array.shape, strides, offset // size)
    return tensors


def _owner(array: Array) -> Array:
    """The contiguous array of the same type that an array is a view of, or the array itself."""
    base = array.base
    if not isinstance(base, np.ndarray) or base.dtype != array.dtype:
        return array
    forward = min(array.strides, default=0) >= 0
    return base if base.flags.c_contiguous and forward else array
