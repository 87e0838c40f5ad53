"""Record the work of a function on the device, and replay it without running Python."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")


class Recorder(Protocol):
    """Records functions whose work on the device is the same each time.

    A replay reads and writes the tensors that the function used, at their addresses. Python does
    not run in it, so it repeats what Python decided when the function was recorded.
    """

    tolerance: float
    """Largest relative difference between a replay and the function itself that is rounding."""

    def warm_up(self, function: Callable[[], T]) -> T:
        """Run a function without recording it; needed a few times before `record`."""

    def record(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Record one call of a function; it may also be called once beforehand.

        Returns:
            A function that replays it, and the result, whose tensors each replay overwrites.

        Raises:
            RuntimeError: it waits for the device, or does what cannot be recorded.
        """

    def forget(self) -> None:
        """Forget all recordings."""

    def now(self) -> Moment:
        """The present moment in the device's work."""


class Moment(Protocol):
    """A moment in the device's work."""

    def ms_until(self, later: Moment) -> float:
        """Milliseconds until a later moment; waits until the device has reached that."""


def capture(
    function: Callable[[], T], stream: torch.cuda.Stream, pool: Any
) -> tuple[Callable[[], None], T]:
    """Capture one call of a function as a CUDA graph.

    Args:
        function: queues work on the current stream.
        stream: to capture on.
        pool: memory of graphs of which one runs at a time (`torch.cuda.graph_pool_handle`).

    Returns:
        A function that replays the graph, and the result, whose tensors each replay overwrites.

    Raises:
        RuntimeError: the function waits for the device, or does what a graph cannot.
    """
    graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(stream.device)
    try:
        # "thread_local": what other threads do with CUDA meanwhile does not end the capture.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            result = function()
    except RuntimeError as error:
        _leave_capture(stream)
        # The error that ended the capture is the context of the one that its end raised.
        raise RuntimeError(str(error.__context__ or error).partition("\n")[0]) from error
    finally:  # a failed capture leaves its stream the current one
        torch.cuda.set_stream(current)
        current.wait_stream(stream)
    return graph.replay, result


def _leave_capture(stream: torch.cuda.Stream) -> None:
    """Make the default generator usable after a failed capture.

    In some versions of torch it goes on refusing to draw outside of a capture ("Offset increment
    outside graph capture") until a later capture has succeeded. In others no capture succeeds.
    """
    graph = torch.cuda.CUDAGraph()
    with (
        suppress(RuntimeError),
        torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
    ):
        torch.zeros((), device=stream.device)


@contextmanager
def _no_waits() -> Iterator[None]:
    """Raise `RuntimeError` where the host waits for the device.

    A capture would fail there, after which some versions of torch free no more memory.
    """
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class CudaGraphs:
    """Records CUDA graphs, which share their memory: only one of them runs at a time.

    Args:
        device: a CUDA device.
    """

    tolerance = 1e-2

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._replays: list[Callable[[], None]] = []
        """All graphs, kept alive: the memory pool can be shared only while one of them exists."""
        self._pool = torch.cuda.graph_pool_handle()

    def warm_up(self, function: Callable[[], T]) -> T:
        """Run a function on the stream of the recording."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            result = function()
        current.wait_stream(self._stream)
        return result

    def record(self, function: Callable[[], T]) -> tuple[Callable[[], None], T]:
        """Run a function once to see that it does not wait, then capture it as a CUDA graph."""
        with _no_waits():
            self.warm_up(function)
        replay, result = capture(function, self._stream, self._pool)
        self._replays.append(replay)
        return replay, result

    def forget(self) -> None:
        """Free the graphs that are not used elsewhere; further ones share other memory."""
        self._replays.clear()
        self._pool = torch.cuda.graph_pool_handle()

    def now(self) -> CudaMoment:
        """An event on the current stream."""
        return CudaMoment()


class CudaMoment:
    """An event on the current CUDA stream."""

    def __init__(self) -> None:
        self._event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._event.record()

    def ms_until(self, later: Moment) -> float:
        """Milliseconds of the device's time."""
        assert isinstance(later, CudaMoment)
        later._event.synchronize()
        return float(self._event.elapsed_time(later._event))


class HostMoment:
    """A moment of the host's clock, for work that runs where it is started."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def ms_until(self, later: Moment) -> float:
        """Milliseconds of the host's time."""
        assert isinstance(later, HostMoment)
        return 1e3 * (later._at - self._at)
