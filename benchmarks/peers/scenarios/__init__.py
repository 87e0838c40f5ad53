"""Scenarios, one per file; each returns the figures of its cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.run.figures import Figure

ENVIRONMENTS = {
    "reverb": "reverb", "buffers": "torch", "sb3": "torch", "rllib-dqn": "torch",
    "rllib-impala": "torch", "sample-factory": "sample-factory",
}  # fmt: skip
"""The Python environment of each scenario's peer."""


def load(name: str) -> Callable[[Path], Sequence[Figure]]:
    """The `measure` function of a scenario; it takes an empty folder."""
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    measure: Callable[[Path], Sequence[Figure]] = module.measure
    return measure
