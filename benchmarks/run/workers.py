"""Bare loops in separate processes: the limits that daemons are compared with."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

from benchmarks.run import cores

Step = Callable[[], float]
"""Does some work and returns its amount."""
START_TIMEOUT_S = 240.0
"""Allows for a GPU's first use and for a compilation, which take tens of seconds on a busy core."""
RATE_TIMEOUT_S = 120.0


class Worker:
    """A process that repeats one step for a given time.

    Args:
        make: creates the step in the process; a module-level function.
        kept_to: cores of the process.
        arguments: arguments of `make`.
        daemon: whether it is a daemonic process, which cannot have children.
        finish: waits for work that steps have only begun, at the end of each measurement; a
            module-level function.
    """

    def __init__(
        self,
        make: Callable[..., Step],
        kept_to: Iterable[int],
        *arguments: Any,
        daemon: bool = True,
        finish: Callable[[], None] | None = None,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, make, list(kept_to), arguments, finish), daemon=daemon
        )
        self._process.start()
        theirs.close()
        try:
            ready = self._pipe.poll(START_TIMEOUT_S) and self._pipe.recv()
        except EOFError:  # it has ended and printed why
            ready = False
        if not ready:
            self.close()
            raise TimeoutError(f"{make.__name__} was not ready within {START_TIMEOUT_S:g} s")

    def begin(self, seconds: float) -> None:
        """Start working for that long; `rate` returns the result."""
        self._pipe.send(seconds)

    def rate(self) -> float:
        """Work done per second. Raises `TimeoutError`."""
        if not self._pipe.poll(RATE_TIMEOUT_S):
            raise TimeoutError(f"{self._process.name}: no result within {RATE_TIMEOUT_S:g} s")
        done, elapsed = self._pipe.recv()
        return float(done / elapsed)

    def measure(self, seconds: float) -> float:
        """Work done per second, over that many seconds."""
        self.begin(seconds)
        return self.rate()

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.terminate()
        self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Measurable(Protocol):
    """Something that works for a given time."""

    def begin(self, seconds: float) -> None:
        """Start working for that long."""

    def rate(self) -> float:
        """Work done per second."""


def together(workers: Sequence[Measurable], seconds: float) -> list[float]:
    """Work done per second by each, while all of them work."""
    for worker in workers:
        worker.begin(seconds)
    return [worker.rate() for worker in workers]


def _work(
    pipe: Connection,
    make: Callable[..., Step],
    kept_to: list[int],
    arguments: tuple[Any, ...],
    finish: Callable[[], None] | None,
) -> None:
    cores.start_on(kept_to)
    step = make(*arguments)
    step()
    pipe.send("ready")
    while True:
        try:
            seconds = pipe.recv()
        except EOFError:
            return
        done, began = 0.0, time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            done += step()
        if finish is not None:
            finish()
            elapsed = time.monotonic() - began
        pipe.send((done, elapsed))
