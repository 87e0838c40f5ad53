"""Check that a suite's memory and disk space, at most, fit what is free.

The sizes of processes (here and in apex/daemons/catalog.py) are resident sizes with the CPU build
of torch 2.13 on two cores: CartPole, Pong at 42x42 and 84x84, with DQN and R2D2. A learner on a
GPU needs more; that is not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from apex.config.machine_fitting import REPLAY_MEMORY_SHARE
from apex.config.sections import Config
from apex.daemons.catalog import CATALOG, daemon_names
from apex.data.schema import Schema
from apex.doctor.findings import Finding, format_bytes

ENGINE_BYTES = 50e6
"""Memory of the engine; supervisord: 43 MB measured."""
PARAMETERS_IN_LEARNER = 5
"""Copies of the parameters: network, target, gradient, two moments."""
PARAMETERS_IN_CHECKPOINT = 5
"""Copies of the parameters: published and trained network, target, two moments; measured: 5.0."""
WARNING_SHARE = 0.8
"""Share of the free space from which a need is a warning."""
FILM_BYTES = 10e6
"""A video of `apex enjoy --video`; an episode of Pong takes 0.25 MB, other games last longer."""
SEGMENTS_BESIDE_TABLE = 2
"""Insert log files beyond the table: the newest, and the oldest, which is partly evicted."""


def memory_needed(config: Config, schema: Schema, parameters: int, machine: int) -> dict[str, int]:
    """Bytes of memory that a suite needs with a full table, by part.

    Args:
        config: the suite's configuration.
        schema: schema of its items.
        parameters: bytes of the network's parameters.
        machine: bytes of memory that the table is limited to a share of.
    """
    table = min(config.replay.capacity * schema.item_bytes, machine * REPLAY_MEMORY_SHARE)
    needed = {"table": table}
    for spec in CATALOG:
        count = len(spec.names(config))
        if count:
            name = spec.kind if spec.count is None else f"{spec.kind}s ({count})"
            needed[name] = count * spec.memory_bytes(config)
    needed["learner"] += (config.learner.prefetch + 1) * batch_bytes(config, schema)
    needed["learner"] += PARAMETERS_IN_LEARNER * parameters
    needed["engine"] = ENGINE_BYTES
    return {name: int(count) for name, count in needed.items()}


def batch_bytes(config: Config, schema: Schema) -> float:
    """Bytes of a batch, decompressed and as it came."""
    frames = 2 * schema.frames.max_frames * schema.frames.frame_bytes if schema.frames else 0
    return config.learner.batch_size * (schema.item_bytes + frames)


def check_memory(needed: Mapping[str, int], available: int) -> Iterator[Finding]:
    """Check that the memory of a suite with a full table is free.

    Args:
        needed: bytes by part.
        available: bytes that are free now on the machine and in the cgroup.
    """
    remedy = "end other programs, or lower actor.count (--actors N) or replay.capacity (--set)"
    yield compared("memory", needed, available, "free", remedy)


def disk_needed(config: Config, schema: Schema, parameters: int) -> dict[str, int]:
    """Bytes on disk that a run's directory needs at most, by part."""
    checkpoint = PARAMETERS_IN_CHECKPOINT * parameters
    daemons = len(daemon_names(config)) + 1
    files = 2 * daemons * 1e6  # of each, one older file is kept
    needed = {
        # Two more: the one that is being written, and that of the best evaluation.
        "checkpoints": (config.learner.keep_checkpoints + 2) * checkpoint,
        "logs": files * config.run.log_max_mb,
        "metrics": 2 * files * config.run.metrics_max_mb,  # JSON and TensorBoard, each bounded
        "a film": FILM_BYTES,
    }
    if config.replay.durability != "off":
        segments = SEGMENTS_BESIDE_TABLE * config.replay.segment_mb * 1e6
        needed["insert log"] = config.replay.capacity * schema.item_bytes + segments
    return {name: int(count) for name, count in needed.items()}


def check_disk(needed: Mapping[str, int], free: int, folder: str) -> Iterator[Finding]:
    """Check that the disk has room for what a run writes.

    Args:
        needed: bytes by part.
        free: bytes that are free for this user.
        folder: the directory of the runs.
    """
    remedy = "free some space (`apex runs list`, `apex runs rm`), or set APEX_RUNS to another disk"
    yield compared("disk", needed, free, f"free in {folder}", remedy)


def compared(check: str, needed: Mapping[str, int], free: int, where: str, remedy: str) -> Finding:
    """Compare the sum of the needed bytes with the free bytes.

    Args:
        check: the finding's name.
        needed: bytes by part.
        free: bytes that are free.
        where: `free in …`, for the text.
        remedy: what to do if they are too few.
    """
    total = sum(needed.values())
    parts = ", ".join(f"{name} {format_bytes(count)}" for name, count in needed.items())
    found = f"{format_bytes(free)} {where}"
    expected = f"{format_bytes(total)} at most: {parts}"
    if total > free:
        return Finding(check, "problem", found, expected, remedy)
    if total > WARNING_SHARE * free:
        return Finding(check, "warning", found, expected, remedy)
    return Finding(check, "ok", found, expected)
