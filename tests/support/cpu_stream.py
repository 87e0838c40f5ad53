"""A stream on the CPU that records and repeats tensor operations, as CUDA graphs do on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from apex.daemons.inference.cuda_stream import Outputs
from tests.support.tape import Recording


class CpuMark:
    """A mark that is reached when a test, or `synchronize`, says so."""

    def __init__(self) -> None:
        self.reached = False

    def query(self) -> bool:
        """Whether it is reached."""
        return self.reached

    def synchronize(self) -> None:
        """Reach it."""
        self.reached = True


class CpuStream:
    """Does all work at once, but its marks are reached later.

    Args:
        refusal: raised by `record`; None: nothing is.
    """

    def __init__(self, refusal: RuntimeError | None = None) -> None:
        self.marks: list[CpuMark] = []
        self.recordings: list[Recording] = []
        self.refused = 0
        self.most_in_flight = 0
        """Most marks at a time that were not reached."""
        self._refusal = refusal

    def context(self) -> AbstractContextManager[Any]:
        """Nothing: there is one queue."""
        return nullcontext()

    def host_tensor(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros."""
        return torch.zeros(tuple(shape), dtype=dtype)

    def mark(self) -> CpuMark:
        """A mark that is not reached."""
        self.marks.append(CpuMark())
        unreached = sum(not mark.reached for mark in self.marks)
        self.most_in_flight = max(self.most_in_flight, unreached)
        return self.marks[-1]

    def record(self, function: Callable[[], Outputs]) -> Callable[[], Outputs]:
        """Record the operations of one call."""
        function()
        if self._refusal is not None:
            self.refused += 1
            raise self._refusal
        with Recording() as recording:
            outputs = function()
        self.recordings.append(recording)

        def replay() -> Outputs:
            recording.replay()
            return outputs

        return replay
