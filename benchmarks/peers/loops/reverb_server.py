"""Reverb's server with one prioritized table of n-step transitions."""

from __future__ import annotations

import os

import reverb

from benchmarks.peers.loops.serve import Step, serve

TABLE = "transitions"
PRIORITY_EXPONENT = 0.6


def serving(capacity: int) -> Step:
    """Start a server; its first reply has the port and the process id."""
    table = reverb.Table(
        TABLE,
        sampler=reverb.selectors.Prioritized(PRIORITY_EXPONENT),
        remover=reverb.selectors.Fifo(),
        max_size=capacity,
        rate_limiter=reverb.rate_limiters.MinSize(1),
    )
    server = reverb.Server([table])
    return lambda: {"port": server.port, "pid": os.getpid()}


if __name__ == "__main__":
    serve(serving)
