"""A recorder for a CPU: it records the operations of a function and repeats them in place.

It has what is essential of a CUDA graph: fixed addresses, and no Python in a replay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from apex.execution.recorders import HostMoment

T = TypeVar("T")


class Recording(TorchDispatchMode):
    """Records each operation with its arguments and its result."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Sequence[Any], Mapping[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when recording: a value is read")
        result = function(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.operations.append((function, args, kwargs, results))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Repeat the operations; results go to where they were."""
        for function, args, kwargs, results in self.operations:
            inputs = {
                leaf.untyped_storage().data_ptr()
                for leaf in tree_leaves((args, kwargs))
                if isinstance(leaf, Tensor)
            }
            again = [r for r in tree_leaves(function(*args, **kwargs)) if isinstance(r, Tensor)]
            for old, new in zip(results, again):
                if old.untyped_storage().data_ptr() not in inputs:  # not a view, not in place
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

    def now(self) -> HostMoment:
        """The present."""
        return HostMoment()
