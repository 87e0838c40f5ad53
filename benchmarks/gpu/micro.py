"""What one update costs on this machine, and what each change to it would bring, in updates/s.

One process, batches on the device, no daemons. Each variant is the learner's own update, made in
another way, and is compared with the eager update.
"""

from __future__ import annotations

import gc
import os
import time
import traceback
from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from apex.acting.exploration import Progress
from apex.algos.base import Algorithm, Learner
from apex.algos.batches import map_tensors
from apex.daemons.learner.device_batches import transfer_to
from apex.host import process_tuning
from benchmarks.gpu.played_batches import played_batches
from benchmarks.gpu.stage import emit, left_s, relative

Step = Callable[[Any], Tensor]
"""Makes one update with a batch and returns the priorities."""

START = Progress(0, 0)
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
SECONDS = float(os.environ.get("MICRO_SECONDS", "0.6"))
BATCHES = [int(size) for size in os.environ.get("MICRO_BATCHES", "64,128,256,512").split(",")]
PRESETS = os.environ.get("MICRO_PRESETS", "pong,pong-fast").split(",")
COMPILE = os.environ.get("MICRO_COMPILE", "1") == "1"
WARM_UP = 3
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


class Eager:
    """The learner's own update, with matrix products in a given precision."""

    def __init__(self, learner: Learner, *, narrow: bool = False) -> None:
        self.learner = learner
        self._narrow = torch.autocast(DEVICE.type, torch.bfloat16, enabled=narrow)

    def __call__(self, batch: Any) -> Tensor:
        with self._narrow:
            return self.learner.learn(batch, START).priorities


class Graphed:
    """The learner's own update as one CUDA graph; a batch is copied into its buffers."""

    def __init__(self, eager: Eager, batch: Any) -> None:
        for optimization in eager.learner.optimizations().values():
            for group in optimization.optimizer.param_groups:
                group["capturable"] = True  # has no effect on apex's RMSProp
        self._inputs = map_tensors(batch, torch.clone)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                eager(self._inputs)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph), eager._narrow:
            self._priorities = eager.learner.update(self._inputs).priorities

    def __call__(self, batch: Any) -> Tensor:
        for static, tensor in zip(tensors_of(self._inputs), tensors_of(batch)):
            static.copy_(tensor, non_blocking=True)
        self._graph.replay()
        return self._priorities


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors of a batch, in a fixed order."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(batch, note)
    return found


def compiled(learner: Learner) -> Eager:
    """The learner's update with compiled networks."""
    for module in learner.modules().values():
        module.compile()
    return Eager(learner)


def to_host(step: Step) -> Step:
    """A step that waits for its priorities, as a learner without deferred copies does."""
    return lambda batch: step(batch).cpu()


Variants = dict[str, Callable[[Learner, Any], Step]]


def variants() -> Variants:
    """Other ways to make the update."""
    found: Variants = {"bfloat16": lambda learner, batch: Eager(learner, narrow=True)}
    if CUDA:
        found = {
            "graph": lambda learner, batch: Graphed(Eager(learner), batch),
            "graph, bfloat16": lambda learner, batch: Graphed(Eager(learner, narrow=True), batch),
            "graph, priorities to the host": lambda learner, batch: to_host(
                Graphed(Eager(learner), batch)
            ),
            **found,
        }
    return found


def compiled_variants() -> Variants:
    """Variants that compile first, which takes tens of seconds."""
    found: Variants = {"compiled": lambda learner, batch: compiled(learner)}
    if CUDA:
        found["compiled, graph"] = lambda learner, batch: Graphed(compiled(learner), batch)
    return found


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


def error_of(algorithm: Algorithm, make: Callable[[Learner, Any], Step], batches: Any) -> float:
    """Relative error of the priorities of a variant's fourth update, beside the eager one's."""
    first, second = batches[:2]
    learner, expected = seeded(algorithm), Eager(seeded(algorithm))
    step = make(learner, first)
    while learner.updates < WARM_UP:  # a graph has made these updates itself
        step(first)
    for _ in range(WARM_UP):
        expected(first)
    return relative(step(second).float().cpu(), expected(second).float().cpu())


def measure(preset: str, size: int, ways: Variants, *, show_eager: bool = True) -> None:
    """Measure the eager update and the given variants of it."""
    algorithm, batches = played_batches(preset, size, 4)
    move = transfer_to(DEVICE)
    batches = [move(batch) for batch in batches]

    def turning(step: Step) -> Callable[[], Tensor]:
        turns: Iterator[Any] = cycle(batches)
        return lambda: step(next(turns))

    usual = turning(Eager(seeded(algorithm)))
    eager = rate(usual)
    if show_eager:
        emit(preset=preset, batch=size, eager=round(eager, 1), **kernels(usual))
    for name, make in ways.items():
        about = {"preset": preset, "batch": size, "variant": name}
        if left_s() < LEAST_S:
            emit(**about, skipped="no time left")
            continue
        try:
            step = turning(make(seeded(algorithm), batches[0]))
            found, error = rate(step), error_of(algorithm, make, batches)
            figures = {"updates_s": round(found, 1), "factor": round(found / eager, 2)}
            emit(**about, **figures, error=round(error, 5), **kernels(step))
        except Exception as error:
            traceback.print_exc()
            emit(**about, error=f"{type(error).__name__}: {error}"[:400])


def main() -> None:
    """Measure the smallest and the largest batch first, and what is compiled last."""
    process_tuning.set_up(1)
    process_tuning.pick_device("auto")
    order = [*dict.fromkeys((BATCHES[0], BATCHES[-1], *BATCHES))]
    wanted = [(PRESETS[0], size, variants()) for size in order]
    wanted[1:1] = [(preset, order[0], variants()) for preset in PRESETS[1:]]
    for preset, size, ways in wanted:
        if left_s() < LEAST_S:
            emit(preset=preset, batch=size, skipped="no time left")
        else:
            measure(preset, size, ways)
            gc.collect()
    if COMPILE and left_s() > LEAST_COMPILE_S:
        measure(PRESETS[0], BATCHES[-1], compiled_variants(), show_eager=False)


if __name__ == "__main__":
    main()
