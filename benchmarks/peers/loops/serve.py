"""Repeat a step for as many seconds as each line on stdin says, and reply with JSON lines."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

Step = Callable[[], dict[str, float]]
"""Does some work and returns the amount by kind."""


def options() -> dict[str, Any]:
    """Options of the loop, from the command line."""
    given: dict[str, Any] = json.loads(sys.argv[1])
    return given


def serve(make: Callable[..., Step]) -> None:
    """Create a step with the options on the command line; repeat it as long as stdin asks.

    Replies with the result of the first step, then, for each line on stdin, with the work done
    and the seconds elapsed.

    Args:
        make: creates the step; called with the options by name.
    """
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the peer's own output goes to stderr
    step = make(**options())
    _send(replies, step())
    while line := sys.stdin.readline():
        seconds = float(line)
        step()  # start the clock at the end of a step
        done: Counter[str] = Counter()
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds:
            done.update(step())
        _send(replies, {"done": done, "elapsed": elapsed})


def _send(replies: Any, reply: dict[str, Any]) -> None:
    replies.write(json.dumps(reply) + "\n")
