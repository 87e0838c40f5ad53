"""A recorder for a CPU: it records the operations of a function and repeats them in place.

It has what is essential of a CUDA graph: fixed addresses, and no Python in a replay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from apex.execution.recorders import HostMoment

T = TypeVar("T")


class Recording(TorchDispatchMode):
    """Records operations with the memory that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when recording: a value is read")
        output = operation(*args, **(kwargs or {}))
        # An alias keeps today's memory when the tensor's own is exchanged.
        memory = tree_map_only(Tensor, Tensor.detach, (args, kwargs or {}, output))
        self._calls.append((operation, *memory))
        return output

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat the operations on the same memory."""
        for operation, args, kwargs, output in self._calls:
            repeated = operation(*args, **kwargs)
            for old, new in zip(tree_leaves(output), tree_leaves(repeated)):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Tape:
    """Records on the CPU.

    Args:
        tolerance: as `Recorder.tolerance`.
    """

    def __init__(self, tolerance: float = 0.0) -> None:
        self.tolerance = tolerance
        self.recorded = self.replayed = 0

    def warm_up(self, function: Callable[[], T]) -> T:
        """Run a function."""
        return function()

    def record(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Run a function and record its operations."""
        recording = Recording()
        with recording:
            result = function()
        self.recorded += 1

        def replay() -> None:
            self.replayed += 1
            recording.replay()

        return replay, result

    def forget(self) -> None:
        """Nothing is kept."""

    def now(self) -> HostMoment:
        """The present."""
        return HostMoment()
