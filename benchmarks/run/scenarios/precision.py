"""Other precisions and `torch.compile` for the update, on the learner's device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.run import cores
from benchmarks.run.daemons import pong_run
from benchmarks.run.figures import Figure, figure, in_turn
from benchmarks.run.pong import START, bare_learner
from benchmarks.run.workers import Step, Worker

BATCHES = (512,) if torch.cuda.is_available() else (32, 512)
SECONDS = 5.0
LIMIT = "the same update as Python runs it, waiting for each"
USUAL = "eager"
MODES = {"compiled": "default", "CUDA graphs": "reduce-overhead"}
"""Mode of `torch.compile` for each variant."""
WAYS = ("bfloat16", "compiled", *(("float32", "CUDA graphs") if torch.cuda.is_available() else ()))


def updating(path: Path, batch_size: int, way: str) -> Step:
    """Step of a variant of the update on one batch, or of `USUAL`; counts updates."""
    learner: Any
    learner, batch = bare_learner(path, batch_size)
    narrow = torch.autocast(learner.device.type, torch.bfloat16, enabled=way == "bfloat16")
    if way == "float32":
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
    elif way in MODES:
        compiled = partial(torch.compile, mode=MODES[way])
        learner.update = compiled(learner.update)

    def step() -> float:
        with narrow:
            learner.learn(batch, START).priorities.cpu()
        return 1

    return step


def measure(folder: Path) -> Sequence[Figure]:
    """Measure all cases."""
    run = pong_run(folder / "run", [])
    shown = []
    for batch_size in BATCHES:
        with Worker(updating, cores.TRAINING, run.path, batch_size, USUAL) as usual:
            for way in WAYS:
                with Worker(updating, cores.TRAINING, run.path, batch_size, way) as other:
                    pairs = in_turn(lambda: other.measure(SECONDS), lambda: usual.measure(SECONDS))
                shown.append(figure(f"{way}, batch {batch_size}", "updates/s", pairs, LIMIT))
    return shown
