"""One scenario a file; each gives the figures of its cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.run.figures import Figure

ENVIRONMENTS = {
    "reverb": "reverb", "buffers": "torch", "sb3": "torch", "rllib-dqn": "torch",
    "rllib-impala": "torch", "sample-factory": "sample-factory",
}  # fmt: skip
"""Of each scenario: the environment that its peer lives in."""


def load(name: str) -> Callable[[Path], Sequence[Figure]]:
    """The scenario of that name: called with an empty folder, it measures."""
    module = import_module(f"{__name__}.{name.replace('-', '_')}")
    measure: Callable[[Path], Sequence[Figure]] = module.measure
    return measure
