"""Small chunks, specs and greetings, and a small file system that can be filled."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apex.config.loading import apply_overlay, read_table
from apex.data import frame_compression
from apex.data.chunks import Chunk, FrameRanges
from apex.data.schema import Arrays, Column, FramesColumn, Schema
from apex.envs.spec import EnvSpec, ObservationPart
from apex.runs.directory import RunDirectory
from apex.wire.messages import Hello

VECTOR_SCHEMA = Schema((Column("action", "int32"), Column("learner_step", "int64")))
FRAME_SCHEMA = Schema(
    (Column("action", "int32"), Column("learner_step", "int64")), FramesColumn((4, 4), 5)
)

PARTS_SPEC = EnvSpec(
    "Parts-v0", (), "", frame_stack=2, num_actions=3, parts=(
        ObservationPart("map", "image", (4, 4), "uint8"),
        ObservationPart("near", "image", (2, 3), "uint8"),
        ObservationPart("position", "vector", (2,), "float32"),
        ObservationPart("goal", "choices", (), "int32", (4,)),
        ObservationPart("action_mask", "mask", (3,), "uint8"),
    ),
)  # fmt: skip
"""An observation of two images and three arrays."""
PARTS_SCHEMA = Schema(
    (
        Column("action", "int32"),
        Column("learner_step", "int64"),
        Column("observation.position", "float32", (2,)),
        Column("observation.goal", "int32"),
        Column("observation.action_mask", "uint8", (3,)),
    ),
    FramesColumn.of_images((Column("map", "uint8", (4, 4)), Column("near", "uint8", (2, 3))), 5),
)


def preset(name: str, *, gpu: bool) -> dict[str, Any]:
    """A preset as a raw table, for a machine with or without a GPU."""
    return apply_overlay(read_table(name), gpu=gpu)


def vector_chunk(actions: Sequence[int], priorities: Sequence[float] | None = None) -> Chunk:
    """Items without frames, identified by `action`; priorities are 1 unless given."""
    columns = {
        "action": np.array(actions, dtype=np.int32),
        "learner_step": np.zeros(len(actions), dtype=np.int64),
    }
    given = np.ones(len(actions)) if priorities is None else np.array(priorities, dtype=float)
    return Chunk(columns, given)


def frame_chunk(actions: Sequence[int], frames_an_item: int = 3) -> Chunk:
    """Items with frames of 4x4 pixels: item k has the frames k .. k + frames_an_item - 1.

    Frame k of the chunk is filled with `10 * actions[0] + k`.
    """
    items = len(actions)
    blocks = [
        frame_compression.compress(np.full((4, 4), (10 * actions[0] + k) % 256, dtype=np.uint8))
        for k in range(items + frames_an_item - 1)
    ]
    ranges = FrameRanges(
        first_frame=np.arange(items, dtype=np.int32),
        frame_count=np.full(items, frames_an_item, dtype=np.int32),
        pad_count=np.zeros(items, dtype=np.int32),
        frame_lengths=np.array([len(block) for block in blocks], dtype=np.int32),
        blob=b"".join(blocks),
    )
    plain = vector_chunk(actions)
    return Chunk(plain.columns, plain.priorities, ranges)


def parts_observations(count: int, value: float = 0.0) -> Arrays:
    """Observations of `PARTS_SPEC`, all numbers the same; all actions are allowed."""
    return {
        "map": np.full((count, 4, 4), value, np.uint8),
        "near": np.full((count, 2, 3), value, np.uint8),
        "position": np.full((count, 2), value, np.float32),
        "goal": np.full(count, value, np.int32) % 4,
        "action_mask": np.ones((count, 3), np.uint8),
    }


def parts_chunk(actions: Sequence[int]) -> Chunk:
    """Items of `PARTS_SCHEMA`: item k has the frames k to k + 2.

    The first image of frame k of the chunk is filled with `10 * actions[0] + k`, the second with
    one more. The position is the action, twice.
    """
    items = len(actions)
    values = [10 * actions[0] + k for k in range(items + 2)]
    frames = [
        b"".join(
            frame_compression.compress(np.full(shape, (value + k) % 256, np.uint8))
            for k, shape in enumerate([(4, 4), (2, 3)])
        )
        for value in values
    ]
    ranges = FrameRanges(
        first_frame=np.arange(items, dtype=np.int32),
        frame_count=np.full(items, 3, dtype=np.int32),
        pad_count=np.ones(items, dtype=np.int32),
        frame_lengths=np.array([len(frame) for frame in frames], dtype=np.int32),
        blob=b"".join(frames),
    )
    plain = vector_chunk(actions)
    columns = {
        **plain.columns,
        "observation.position": np.repeat(np.float32(actions), 2).reshape(-1, 2),
        "observation.goal": np.int32(actions) % 4,
        "observation.action_mask": np.ones((items, 3), np.uint8),
    }
    return Chunk(columns, plain.priorities, ranges)


def env_spec(
    shape: tuple[int, ...], dtype: str = "uint8", stack: int = 0, actions: int = 3
) -> EnvSpec:
    """An environment's spec with the given shape of one observation."""
    return EnvSpec("Test-v0", shape, dtype, stack, actions)


def hello(name: str = "actor_000", role: str = "actor", **changes: object) -> Hello:
    """A greeting of run `run` with `VECTOR_SCHEMA`."""
    fields = {"epoch": 1, "run_id": "run", "schema_hash": VECTOR_SCHEMA.hash, "pid": 1}
    return Hello(role=role, name=name, **{**fields, **changes})


def cartpole_chunk(items: int) -> Chunk:
    """Items of the preset `cartpole`: 52 bytes of columns and 8 of priority each."""
    return Chunk(
        {
            "action": np.zeros(items, dtype=np.int32),
            "n_step_return": np.zeros(items, dtype=np.float32),
            "discount": np.ones(items, dtype=np.float32),
            "learner_step": np.zeros(items, dtype=np.int64),
            "observation": np.zeros((items, 4), dtype=np.float32),
            "next_observation": np.zeros((items, 4), dtype=np.float32),
        },
        np.ones(items),
    )


def hello_of(run: RunDirectory, name: str = "actor_000") -> Hello:
    """The greeting of an actor of a prepared run."""
    facts = run.facts()
    return Hello(
        role="actor",
        name=name,
        epoch=1,
        run_id=facts.run_id,
        schema_hash=facts.schema.hash,
        pid=os.getpid(),
    )


def mount_tmpfs(folder: Path, megabytes: int, *flags: str) -> bool:
    """Mount a file system of a size at `folder`; False if this user may not mount."""
    if os.getuid() != 0:
        return False
    size = ",".join([f"size={megabytes}m", *flags])
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, timeout=10).returncode == 0


def unmount(folder: Path) -> None:
    """Unmount a file system, once its last file is closed."""
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=10)


def fill(path: Path) -> bool:
    """Fill the rest of a file system with one file."""
    try:
        with path.open("ab", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    return True
