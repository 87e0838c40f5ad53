"""Copy batches to a GPU, asynchronously to training."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from apex.algos.batches import map_tensors
from apex.errors import DeviceMemoryError


def transfer_to(device: torch.device) -> Callable[[Any], Any]:
    """Return a function that moves batches to a device; on the CPU it does nothing."""
    return Transfer(device) if device.type == "cuda" else lambda batch: batch


class Transfer:
    """Moves batches to a GPU through pinned memory, on the threads that prepare them.

    The copy is complete when the call returns, so the training loop never waits for one. Several
    threads may copy at the same time.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, batch: Any) -> Any:
        """Return a copy of the batch on the device."""
        with torch.cuda.stream(self._stream):
            moved = copied(batch, self._copy)
            done = self._stream.record_event()
        done.synchronize()
        return moved

    def _copy(self, tensor: Tensor) -> Tensor:
        try:
            pinned = tensor.pin_memory()
        except RuntimeError as error:
            raise DeviceMemoryError(
                f"cannot allocate pinned memory for a batch: {error} Lower learner.batch_size or "
                "learner.prefetch, or raise the limit of locked memory"
            ) from None
        moved = pinned.to(self._device, non_blocking=True)
        # Free the memory only after the training stream has read it, not once this one wrote it.
        moved.record_stream(torch.cuda.default_stream(self._device))
        return moved


def copied(batch: Any, copy: Callable[[Tensor], Tensor]) -> Any:
    """Copy a batch; overlapping views of one tensor stay views of one copy.

    The two observations of a transition, for example, share all but n of their frames.

    Args:
        batch: any structure that `map_tensors` accepts.
        copy: copies a contiguous tensor.
    """
    viewed: dict[tuple[int, torch.dtype], int] = defaultdict(int)

    def count(tensor: Tensor) -> Tensor:
        viewed[tensor.untyped_storage().data_ptr(), tensor.dtype] += tensor.nbytes
        return tensor

    tensors = map_tensors(batch, count)
    whole: dict[tuple[int, torch.dtype], Tensor] = {}

    def move(tensor: Tensor) -> Tensor:
        storage, key = tensor.untyped_storage(), (tensor.untyped_storage().data_ptr(), tensor.dtype)
        if viewed[key] <= storage.nbytes():
            return copy(tensor.contiguous())
        if key not in whole:
            size = storage.nbytes() // tensor.element_size()
            whole[key] = copy(tensor.as_strided((size,), (1,), 0))
        return whole[key].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    return map_tensors(tensors, move)
