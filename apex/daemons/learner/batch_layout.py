"""Layout of a batch in one byte buffer, so that it crosses to a device in one copy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from apex.algos.batches import map_tensors

ALIGNMENT = 256
"""Bytes; each array begins at a multiple of it, as memory of CUDA's allocator does."""


@dataclass(frozen=True)
class BatchLayout:
    """Positions of arrays in one byte buffer. Equal dtypes and shapes have equal positions.

    Args:
        dtypes: of the arrays.
        shapes: of the arrays.
    """

    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, arrays: Iterable[Tensor]) -> BatchLayout:
        """The layout of some tensors, in their order."""
        arrays = list(arrays)
        return cls(tuple(a.dtype for a in arrays), tuple(tuple(a.shape) for a in arrays))

    @cached_property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """First byte and end of each array."""
        spans, end = [], 0
        for dtype, shape in zip(self.dtypes, self.shapes):
            begin = -(-end // ALIGNMENT) * ALIGNMENT
            end = begin + torch.Size(shape).numel() * dtype.itemsize
            spans.append((begin, end))
        return tuple(spans)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        return self.spans[-1][1] if self.spans else 0

    def views(self, buffer: Tensor) -> list[Tensor]:
        """The arrays as views of a buffer, `[nbytes] uint8`."""
        places = zip(self.spans, self.dtypes, self.shapes)
        return [buffer[begin:end].view(dtype).view(shape) for (begin, end), dtype, shape in places]


class DistinctArrays:
    """The distinct memory of a batch: overlapping tensors share one array.

    The two observations of a transition, for example, share all but n of their frames. Views
    that total no more bytes than their storage are arrays of their own.

    Args:
        batch: any structure that `map_tensors` accepts, on the CPU.
    """

    def __init__(self, batch: Any) -> None:
        self.arrays: list[Tensor] = []
        """What to copy, in the batch's order."""
        self._viewed: dict[tuple[int, torch.dtype], int] = defaultdict(int)
        self._batch = map_tensors(batch, self._count)
        self._whole: dict[tuple[int, torch.dtype], int] = {}
        """Index of each array that is a whole storage."""
        self._places: list[tuple[int, bool]] = []
        """For each tensor of the batch, the index of its array, and whether it is a view of it."""
        map_tensors(self._batch, self._add)

    def _count(self, tensor: Tensor) -> Tensor:
        self._viewed[_storage(tensor)] += tensor.nbytes
        return tensor

    def _add(self, tensor: Tensor) -> Tensor:
        key, nbytes = _storage(tensor), tensor.untyped_storage().nbytes()
        if self._viewed[key] <= nbytes:
            self._places.append((len(self.arrays), False))
            self.arrays.append(tensor)
            return tensor
        if key not in self._whole:
            self._whole[key] = len(self.arrays)
            self.arrays.append(tensor.as_strided((nbytes // tensor.element_size(),), (1,), 0))
        self._places.append((self._whole[key], True))
        return tensor

    def rebuilt(self, copies: Sequence[Tensor]) -> Any:
        """Rebuild the batch from copies of `arrays`."""
        places = iter(self._places)

        def view(tensor: Tensor) -> Tensor:
            index, overlapping = next(places)
            copy = copies[index]
            if not overlapping:
                return copy
            offset = copy.storage_offset() + tensor.storage_offset()
            return copy.as_strided(tensor.shape, tensor.stride(), offset)

        return map_tensors(self._batch, view)


def _storage(tensor: Tensor) -> tuple[int, torch.dtype]:
    return tensor.untyped_storage().data_ptr(), tensor.dtype
