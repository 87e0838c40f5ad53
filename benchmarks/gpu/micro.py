"""What one update costs on this machine, and what each change to it would bring, in updates/s.

One process, batches on the device, no daemons. Each variant is the learner's own update, made in
another way, and is compared with the eager update. The log says why a graph was not used.
"""

from __future__ import annotations

import gc
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from apex.acting.exploration import Progress
from apex.algos.base import Algorithm, Learner
from apex.daemons.learner.device_batches import transfer_to
from apex.execution.execution import Eager, Execution, Graphed
from apex.execution.recorders import CudaGraphs
from apex.execution.settings import compile_networks
from apex.host import process_tuning
from benchmarks.gpu.played_batches import played_batches
from benchmarks.gpu.stage import emit, left_s, relative

Step = Callable[[Any], Tensor]
"""Makes one update with a batch and returns the priorities."""
Variant = Callable[[Learner, int], Step]
"""Makes a step from a learner and the items of its batches."""

START = Progress(0, 0)
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SECONDS = float(os.environ.get("MICRO_SECONDS", "0.6"))
BATCHES = [int(size) for size in os.environ.get("MICRO_BATCHES", "64,128,256,512").split(",")]
PRESETS = os.environ.get("MICRO_PRESETS", "pong,pong-fast").split(",")
COMPILE = os.environ.get("MICRO_COMPILE", "1") == "1"
WARM_UP = 10
"""Updates before the measured ones; a graph is recorded and compared in them."""
LEAST_S, LEAST_COMPILE_S = 8.0, 25.0
"""Seconds that must be left for a variant, and for one that is compiled."""


def synchronize() -> None:
    """Wait for the device."""
    if CUDA:
        torch.cuda.synchronize()


def rate(step: Callable[[], object]) -> float:
    """Calls per second: the median of three."""
    for _ in range(WARM_UP):
        step()
    synchronize()
    found = []
    for _ in range(3):
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS / 3:
            step()
            count += 1
        synchronize()
        found.append(count / (time.perf_counter() - began))
    return sorted(found)[1]


def stepping(learner: Learner, execution: Execution) -> Step:
    """A step that makes updates of a learner."""
    return lambda batch: learner.learn(batch, START, execution).priorities


def eager(learner: Learner, size: int) -> Step:
    """Updates that Python runs."""
    return stepping(learner, Eager(learner))


def graphed(learner: Learner, size: int) -> Step:
    """Updates that are recorded and replayed, as `learner.execution = "graph"` does."""
    return stepping(learner, Graphed(learner, CudaGraphs(DEVICE), size))


def compiled(learner: Learner, size: int) -> Step:
    """As `learner.execution = "compile"` does; eager on a CPU."""
    compile_networks(learner)
    return graphed(learner, size) if CUDA else eager(learner, size)


def narrow(make: Variant) -> Variant:
    """The same with networks that compute in bfloat16."""

    def step_of(learner: Learner, size: int) -> Step:
        learner.precision = torch.bfloat16
        return make(learner, size)

    return step_of


def to_host(make: Variant) -> Variant:
    """The same, waiting for the priorities of each update."""

    def step_of(learner: Learner, size: int) -> Step:
        step = make(learner, size)
        return lambda batch: step(batch).cpu()

    return step_of


VARIANTS: dict[str, Variant] = {
    **(
        {
            "graph": graphed,
            "graph, bfloat16": narrow(graphed),
            "graph, priorities to the host": to_host(graphed),
        }
        if CUDA
        else {}
    ),
    "bfloat16": narrow(eager),
}
"""Other ways to make the update."""
COMPILED: dict[str, Variant] = {"compiled": compiled, "compiled, bfloat16": narrow(compiled)}
"""Ways that compile first, which takes tens of seconds."""


def kernels(step: Callable[[], object]) -> dict[str, Any]:
    """Kernels of one step, and the milliseconds that the device computes."""
    if not CUDA:
        return {}
    from torch.profiler import ProfilerActivity, profile

    step()
    synchronize()
    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        step()
        synchronize()
    events = [one for one in profiler.events() if "CUDA" in str(one.device_type)]
    longest = sorted(events, key=lambda one: -one.time_range.elapsed_us())[:6]
    return {
        "kernels": len(events),
        "busy_ms": round(sum(one.time_range.elapsed_us() for one in events) / 1e3, 3),
        "longest": [[one.name[:60], round(one.time_range.elapsed_us(), 1)] for one in longest],
    }


def seeded(algorithm: Algorithm) -> Learner:
    """A learner on the device; all have the same parameters."""
    torch.manual_seed(7)
    return algorithm.learner(DEVICE)


def error_of(algorithm: Algorithm, make: Variant, batches: Sequence[Any], size: int) -> float:
    """Relative error of the priorities of a variant's last update, beside the eager one's."""
    step, expected = (way(seeded(algorithm), size) for way in (make, eager))
    for batch in (batches * WARM_UP)[:WARM_UP]:
        found, right = step(batch), expected(batch)
    return relative(found.float().cpu(), right.float().cpu())


def measure(preset: str, size: int, ways: dict[str, Variant], *, show_eager: bool = True) -> None:
    """Measure the eager update and the given variants of it."""
    algorithm, batches = played_batches(preset, size, 4, packed=CUDA)
    move = transfer_to(DEVICE)
    batches = [move(batch) for batch in batches]

    def turning(step: Step) -> Callable[[], Tensor]:
        turns: Iterator[Any] = cycle(batches)
        return lambda: step(next(turns))

    usual = turning(eager(seeded(algorithm), size))
    base = rate(usual)
    if show_eager:
        emit(preset=preset, batch=size, eager=round(base, 1), **kernels(usual))
    for name, make in ways.items():
        about = {"preset": preset, "batch": size, "variant": name}
        if left_s() < LEAST_S:
            emit(**about, skipped="no time left")
            continue
        try:
            step = turning(make(seeded(algorithm), size))
            found, error = rate(step), error_of(algorithm, make, batches, size)
            figures = {"updates_s": round(found, 1), "factor": round(found / base, 2)}
            emit(**about, **figures, error=round(error, 5), **kernels(step))
        except Exception as error:
            traceback.print_exc()
            emit(**about, error=f"{type(error).__name__}: {error}"[:400])


def main() -> None:
    """Measure the smallest and the largest batch first, and what is compiled last."""
    logging.basicConfig(level=logging.INFO)
    process_tuning.set_up(1)
    process_tuning.pick_device("auto")
    order = [*dict.fromkeys((BATCHES[0], BATCHES[-1], *BATCHES))]
    wanted = [(PRESETS[0], size, VARIANTS) for size in order]
    wanted[1:1] = [(preset, order[0], VARIANTS) for preset in PRESETS[1:]]
    for preset, size, ways in wanted:
        if left_s() < LEAST_S:
            emit(preset=preset, batch=size, skipped="no time left")
        else:
            measure(preset, size, ways)
            gc.collect()
    if COMPILE and left_s() > LEAST_COMPILE_S:
        measure(PRESETS[0], BATCHES[-1], COMPILED, show_eager=False)


if __name__ == "__main__":
    main()
