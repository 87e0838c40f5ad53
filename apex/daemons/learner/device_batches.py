"""Batches on their way to a GPU, and results on their way back, while it trains."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from apex.algos.batches import map_tensors
from apex.errors import DeviceMemoryError


def transfer_to(device: torch.device) -> Callable[[Any], Any]:
    """Brings batches to a device; on the CPU they are there already."""
    return Transfer(device) if device.type == "cuda" else lambda batch: batch


class Transfer:
    """Moves batches to a device from pinned memory, on the threads that prepare them.

    A batch is there when the call returns, so the training loop waits for no copy; as many copies
    are under way as there are threads.

    Args:
        device: a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, batch: Any) -> Any:
        """The batch on the device."""
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
                f"no pinned memory for a batch: {error} Lower learner.batch_size or "
                "learner.prefetch, or raise the limit of locked memory"
            ) from None
        moved = pinned.to(self._device, non_blocking=True)
        # It is freed when the training stream has read it, not when this one has written it.
        moved.record_stream(torch.cuda.default_stream(self._device))
        return moved


def copied(batch: Any, copy: Callable[[Tensor], Tensor]) -> Any:
    """A batch of copies; tensors that overlap, as views of one, are copied as that one.

    The two observations of a transition share all but n of their frames.

    Args:
        batch: as `map_tensors` takes it.
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


class HostCopy:
    """A tensor's numbers on their way to the host.

    Args:
        tensor: on any device; the copy follows what is under way there, and nothing waits for it.
    """

    def __init__(self, tensor: Tensor) -> None:
        source = tensor.detach().double()
        self._event: torch.cuda.Event | None = None
        if tensor.device.type != "cuda":
            self._tensor = source
            return
        self._tensor = torch.empty(source.shape, dtype=source.dtype, pin_memory=True)
        self._tensor.copy_(source, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def read(self) -> npt.NDArray[np.float64]:
        """The numbers; waits until they are there."""
        if self._event is not None:
            self._event.synchronize()
        return self._tensor.numpy()
