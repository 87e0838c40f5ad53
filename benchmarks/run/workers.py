"""Bare loops in processes of their own: the limits that daemons are held against."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import Connection
from typing import Any, Protocol

from benchmarks.run import cores

Step = Callable[[], float]
"""Does a bit of work; says how much."""
START_TIMEOUT_S = 60.0
RATE_TIMEOUT_S = 60.0


class Worker:
    """A process that repeats one step for as long as it is told to.

    Args:
        make: makes the step, in the process; a function of a module.
        kept_to: cores for it.
        arguments: of `make`.
        daemon: whether it must have no processes of its own.
    """

    def __init__(
        self,
        make: Callable[..., Step],
        kept_to: Iterable[int],
        *arguments: Any,
        daemon: bool = True,
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_work, args=(theirs, make, list(kept_to), arguments), daemon=daemon
        )
        self._process.start()
        theirs.close()
        try:
            ready = self._pipe.poll(START_TIMEOUT_S) and self._pipe.recv()
        except EOFError:  # it has ended, and said why
            ready = False
        if not ready:
            self.close()
            raise TimeoutError(f"{make.__name__} was not ready within {START_TIMEOUT_S:g} s")

    def begin(self, seconds: float) -> None:
        """Let it work for that long; `rate` gives the outcome."""
        self._pipe.send(seconds)

    def rate(self) -> float:
        """Work done in a second. Raises `TimeoutError`."""
        if not self._pipe.poll(RATE_TIMEOUT_S):
            raise TimeoutError(f"{self._process.name} did not end its step")
        done, elapsed = self._pipe.recv()
        return float(done / elapsed)

    def measure(self, seconds: float) -> float:
        """Work done in a second, over that many."""
        self.begin(seconds)
        return self.rate()

    def close(self) -> None:
        """End it."""
        self._pipe.close()
        self._process.terminate()
        self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Measurable(Protocol):
    """What works for as long as it is told to."""

    def begin(self, seconds: float) -> None:
        """Let it work for that long."""

    def rate(self) -> float:
        """What came of it: work done in a second."""


def together(workers: Sequence[Measurable], seconds: float) -> list[float]:
    """Work done in a second by each, while all work."""
    for worker in workers:
        worker.begin(seconds)
    return [worker.rate() for worker in workers]


def _work(
    pipe: Connection, make: Callable[..., Step], kept_to: list[int], arguments: tuple[Any, ...]
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
        pipe.send((done, elapsed))
