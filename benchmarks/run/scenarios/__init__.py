"""Scenarios, one per file; each returns the figures of its cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.run.figures import Figure

NAMES = (
    "actor", "actor-random", "learner", "learner-data", "replay", "suite", "params", "scale",
    "start",
)  # fmt: skip
"""Scenarios that `make bench` runs."""
ON_DEMAND = ("inference", "precision")
"""Scenarios that `make bench` runs when named, and on a machine with a GPU."""
SHORT = ("gpu",)
"""Short forms of others, which `make bench` runs only when named."""


def load(name: str) -> Callable[[Path], Sequence[Figure]]:
    """The `measure` function of a scenario; it takes an empty folder."""
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    measure: Callable[[Path], Sequence[Figure]] = module.measure
    return measure
