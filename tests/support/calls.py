"""Recording of the apex functions that an action calls, by file."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

import apex

ROOT = f"{Path(apex.__file__).parent}/"
LAYERS = (
    {"cli"}, {"doctor"}, {"launch"}, {"daemons"}, {"evaluation"}, {"algos", "replay"},
    {"acting", "networks", "runs"}, {"envs"}, {"plugins.py", "wire"}, {"config", "data", "host"},
    {"errors.py", "ops"},
)  # fmt: skip
"""Packages from the highest layer to the lowest; a package imports only from lower layers."""

Call = tuple[str, str]
"""A file under `apex/`, and a function in it."""


def calls_of(action: Callable[[], Any], whole: Callable[[Call], bool]) -> list[Call]:
    """Run an action and return the calls that it made, in order.

    Args:
        action: what to run.
        whole: whether to leave out the calls that a given call makes itself.
    """
    calls: list[Call] = []
    within = 0

    def see(frame: FrameType, kind: str, argument: object) -> None:
        nonlocal within
        code = frame.f_code
        is_function = code.co_flags & inspect.CO_NEWLOCALS and not code.co_name.startswith("<")
        if not (code.co_filename.startswith(ROOT) and is_function):
            return
        if kind == "return" and within:
            within -= 1
        elif kind == "call" and within:
            within += 1
        elif kind == "call":
            calls.append((code.co_filename[len(ROOT) :], code.co_name))
            within = int(whole(calls[-1]))

    sys.setprofile(see)
    try:
        action()
    finally:
        sys.setprofile(None)
    return calls


def files_of(calls: list[Call]) -> list[str]:
    """The files of the calls, in order; consecutive calls into one file count once."""
    files = [file for file, _ in calls]
    return [file for before, file in zip(["", *files], files) if file != before]


def upward_calls(files: list[str]) -> int:
    """How often a call goes from a file to one in a higher layer."""
    layers = [_layer(file) for file in files]
    return sum(after < before for before, after in pairwise(layers))


def _layer(file: str) -> int:
    package = file.partition("/")[0]
    return next(number for number, packages in enumerate(LAYERS) if package in packages)
