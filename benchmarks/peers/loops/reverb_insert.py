"""Make n-step transitions of recorded raw frames and insert them into Reverb."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import reverb

from benchmarks.peers.loops.pong import DISCOUNT, N_STEP, STACK
from benchmarks.peers.loops.reverb_server import TABLE
from benchmarks.peers.loops.serve import Step, serve

FRAMES = STACK + N_STEP


class Producer:
    """Inserts the transitions of one environment, each frame once.

    Args:
        client: client of the server.
        in_flight: maximum of unconfirmed items after a step.
    """

    def __init__(self, client: reverb.Client, in_flight: int) -> None:
        self._writer = client.trajectory_writer(num_keep_alive_refs=FRAMES)
        self._in_flight = in_flight
        self._length = 0

    def add(self, row: dict[str, Any], ended: bool) -> int:
        """Append a step, insert the transition that it completes; returns the number of items."""
        self._writer.append(row)
        self._length += 1
        whole = self._length >= FRAMES
        if whole:
            history = self._writer.history
            item = {name: history[name][-1] for name in row if name != "frame"}
            item["frames"] = history["frame"][-FRAMES:]
            self._writer.create_item(TABLE, priority=1.0, trajectory=item)
            self._writer.flush(block_until_num_items=self._in_flight)
        if ended:
            self._writer.end_episode(clear_buffers=True)
            self._length = 0
        return int(whole)


def _rows(recording: str) -> Iterator[tuple[list[dict[str, Any]], list[bool]]]:
    """For each step and environment: the frame, the data of the transition that began n steps
    before, and whether the episode ends with this frame."""
    frames, actions, rewards, terminated, truncated = (
        np.load(Path(recording) / f"{name}.npy")
        for name in ("frames", "actions", "rewards", "terminated", "truncated")
    )
    ended = terminated | truncated
    for t in cycle(range(N_STEP, len(frames))):
        returns = sum(DISCOUNT**k * rewards[t - N_STEP + k] for k in range(N_STEP))
        discounts = DISCOUNT**N_STEP * ~terminated[t - 1]
        rows = [
            {
                "frame": frames[t, env],
                "action": np.int32(actions[t - N_STEP, env]),
                "n_step_return": np.float32(returns[env]),
                "discount": np.float32(discounts[env]),
            }
            for env in range(frames.shape[1])
        ]
        yield rows, (ended[t] | ended[t - 1]).tolist()


def inserting(port: int, recording: str, in_flight: int, writers: int) -> Step:
    """Step of one producer after the other, like an actor's environments; counts items."""
    client = reverb.Client(f"localhost:{port}")
    producers = [Producer(client, in_flight) for _ in range(writers)]
    steps = _rows(recording)

    def step() -> dict[str, float]:
        rows, ended = next(steps)
        done = sum(one.add(row, end) for one, row, end in zip(producers, rows, ended))
        return {"items": done}

    for _ in range(FRAMES):
        step()
    return step


if __name__ == "__main__":
    serve(inserting)
