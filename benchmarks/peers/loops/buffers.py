"""In-process replay buffers of TorchRL and cpprb."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.peers.loops.pong import DISCOUNT, N_STEP, STACK
from benchmarks.peers.loops.serve import Step, serve

PRIORITY_EXPONENT, IMPORTANCE_EXPONENT = 0.6, 0.4
SHAPE = (STACK, 84, 84)


def _transitions(recording: str) -> Iterator[dict[str, Any]]:
    """For each step, the transitions that begin with it, `[E, ...]` per column."""
    frames, actions, rewards = (
        np.load(Path(recording) / f"{name}.npy") for name in ("frames", "actions", "rewards")
    )
    for t in cycle(range(STACK - 1, len(frames) - N_STEP)):
        stacks = [frames[end - STACK + 1 : end + 1].swapaxes(0, 1) for end in (t, t + N_STEP)]
        returns = sum(DISCOUNT**k * rewards[t + k] for k in range(N_STEP))
        yield {
            "observation": np.ascontiguousarray(stacks[0]),
            "next_observation": np.ascontiguousarray(stacks[1]),
            "action": actions[t].astype(np.int32),
            "n_step_return": np.asarray(returns, dtype=np.float32),
            "discount": np.full(len(actions[t]), DISCOUNT**N_STEP, dtype=np.float32),
        }


class TorchRL:
    """TorchRL's buffer: whole transitions in one tensor, sampled uniformly."""

    def __init__(self, capacity: int, batch: int) -> None:
        from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
        from torchrl.data.replay_buffers.samplers import RandomSampler

        self._buffer = TensorDictReplayBuffer(
            storage=LazyTensorStorage(capacity), sampler=RandomSampler(), batch_size=batch
        )

    def insert(self, columns: dict[str, Any]) -> None:
        """Insert the transitions of one step."""
        from tensordict import TensorDict

        tensors = {name: torch.from_numpy(column) for name, column in columns.items()}
        self._buffer.extend(TensorDict(tensors, batch_size=[len(columns["action"])]))

    def sample(self) -> None:
        """Sample one batch."""
        assert self._buffer.sample()["observation"].shape[1:] == SHAPE


class CppRB:
    """cpprb's buffer: whole transitions in arrays, prioritized."""

    def __init__(self, capacity: int, batch: int) -> None:
        from cpprb import PrioritizedReplayBuffer

        frames = {"shape": SHAPE, "dtype": np.uint8}
        self._buffer = PrioritizedReplayBuffer(
            capacity,
            {
                "observation": frames,
                "next_observation": frames,
                "action": {"dtype": np.int32},
                "n_step_return": {"dtype": np.float32},
                "discount": {"dtype": np.float32},
            },
            alpha=PRIORITY_EXPONENT,
        )
        self._batch = batch

    def insert(self, columns: dict[str, Any]) -> None:
        """Insert the transitions of one step."""
        self._buffer.add(**columns)

    def sample(self) -> None:
        """Sample one batch with its indices and weights."""
        sampled = self._buffer.sample(self._batch, beta=IMPORTANCE_EXPONENT)
        assert sampled["observation"].shape[1:] == SHAPE


BUFFERS = {"torchrl": TorchRL, "cpprb": CppRB}


def using(buffer: str, recording: str, capacity: int, batch: int, inserts: bool) -> Step:
    """Step that inserts into or samples from a full buffer; counts items."""
    torch.set_num_threads(1)
    transitions = _transitions(recording)
    made = BUFFERS[buffer](capacity, batch)
    for _ in range(capacity // len(next(transitions)["action"])):
        made.insert(next(transitions))

    def insert() -> dict[str, float]:
        columns = next(transitions)
        made.insert(columns)
        return {"items": len(columns["action"])}

    def sample() -> dict[str, float]:
        made.sample()
        return {"items": batch}

    return insert if inserts else sample


if __name__ == "__main__":
    serve(using)
