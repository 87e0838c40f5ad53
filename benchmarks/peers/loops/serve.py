"""Lets a loop work for so many seconds whenever a line of JSON on stdin says so."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

Step = Callable[[], dict[str, float]]
"""Does a bit of work; says how much of what."""


def options() -> dict[str, Any]:
    """What the loop was started with."""
    told: dict[str, Any] = json.loads(sys.argv[1])
    return told


def serve(make: Callable[..., Step]) -> None:
    """Make a step with the options on the command line; repeat it for as long as it is told to.

    Prints what the first step gave, then what was done in how many seconds of each turn.

    Args:
        make: called with the options by name.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the peer prints is no reply
    step = make(**options())
    _say(replies, step())
    while line := sys.stdin.readline():
        seconds = float(line)
        step()  # the clock begins where a step ends
        done: Counter[str] = Counter()
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            done.update(step())
        _say(replies, {"done": done, "elapsed": elapsed})


def _say(replies: Any, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
