"""One part of the scenario `gpu` of `make bench`: `python -m benchmarks.gpu.bench learner`.

Each figure is written when it is measured, so that a stage that runs out of time keeps what it has.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path

from benchmarks.gpu.stage import emit
from benchmarks.run.scenarios import gpu


def main(name: str) -> None:
    """Measure one part of `gpu.PARTS`."""
    began = time.monotonic()
    part = gpu.PARTS[name]
    if name == "learner":
        batches = os.environ.get("LEARNER_BATCHES")
        sizes = [int(size) for size in batches.split(",")] if batches else gpu.BATCHES
        more = os.environ.get("LEARNER_SETTINGS", "").split()
        part = partial(gpu.learner, batches=sizes, more=more)
    with tempfile.TemporaryDirectory(prefix="apex-bench-") as folder:
        try:
            for figure in part(Path(folder)):
                emit(scenario=name, **asdict(figure))
        except BaseException as error:
            emit(scenario=name, error=f"{type(error).__name__}: {error}"[:600])
            raise
        finally:
            emit(scenario=name, took_s=round(time.monotonic() - began, 1))


if __name__ == "__main__":
    main(sys.argv[1])
