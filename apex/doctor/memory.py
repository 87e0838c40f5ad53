"""Memory and disk: what a suite takes at most, against what is free.

The figures of processes (here and in apex/daemons/catalog.py) are resident sizes with the CPU
build of torch 2.13 on two cores, with CartPole, Pong at 42x42 and at 84x84, by DQN and R2D2. A
learner on a GPU takes more: not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from apex.config.machine_fitting import REPLAY_MEMORY_SHARE
from apex.config.sections import Config
from apex.daemons.catalog import CATALOG, daemon_names
from apex.data.schema import Schema
from apex.doctor.findings import Finding, megabytes

ENGINE_BYTES = 50e6
"""supervisord: 43 MB."""
PARAMETERS_IN_LEARNER = 5
"""Copies: network, target, gradient, two moments."""
PARAMETERS_IN_CHECKPOINT = 5
"""Copies: published network, learner's network, target, two moments; 5.0 were measured."""
FULL = 0.8
"""Share of what is free from which a need is close to it."""
FILM_BYTES = 10e6
"""A film of `apex enjoy --video`: an episode of Pong takes 0.25 MB, others last longer."""
SEGMENTS_BESIDE_TABLE = 2
"""Of the insert log: the one being written, and one whose items are not all evicted."""


def memory_needed(config: Config, schema: Schema, parameters: int, machine: int) -> dict[str, int]:
    """Bytes of memory by what takes them, with a full table.

    Args:
        config: of the suite.
        schema: of its items.
        parameters: bytes of the network.
        machine: bytes of all memory, of which a table gets a share only.
    """
    table = min(config.replay.capacity * schema.item_bytes, machine * REPLAY_MEMORY_SHARE)
    frames = 2 * schema.frames.max_frames * schema.frames.frame_bytes if schema.frames else 0
    batches = (config.learner.prefetch + 1) * config.learner.batch_size
    needed = {"table": table}
    for spec in CATALOG:
        count = len(spec.names(config))
        if count:
            name = spec.kind if spec.count is None else f"{spec.kind}s ({count})"
            needed[name] = count * spec.memory_bytes(config)
    needed["learner"] += batches * (schema.item_bytes + frames)
    needed["learner"] += PARAMETERS_IN_LEARNER * parameters
    needed["engine"] = ENGINE_BYTES
    return {name: int(count) for name, count in needed.items()}


def check_memory(needed: Mapping[str, int], available: int) -> Iterator[Finding]:
    """Whether a suite's memory, its table full, fits what is free.

    Args:
        needed: bytes by what takes them.
        available: bytes free now, by the machine and the cgroup.
    """
    remedy = "end other programs, or lower actor.count or replay.capacity (--actors N, --set)"
    yield _compared("memory", needed, available, "free", remedy)


def disk_needed(config: Config, schema: Schema, parameters: int) -> dict[str, int]:
    """Bytes on the disk of a run's directory by what takes them, at most."""
    checkpoint = PARAMETERS_IN_CHECKPOINT * parameters
    daemons = len(daemon_names(config)) + 1
    files = 2 * daemons * 1e6  # one older file is kept of each
    needed = {
        # One checkpoint is written while the others are there; the best evaluation's beside them.
        "checkpoints": (config.learner.keep_checkpoints + 2) * checkpoint,
        "logs": files * config.run.log_max_mb,
        "metrics": 2 * files * config.run.metrics_max_mb,  # TensorBoard's files have that bound too
        "a film": FILM_BYTES,
    }
    if config.replay.durability != "off":
        segments = SEGMENTS_BESIDE_TABLE * config.replay.segment_mb * 1e6
        needed["insert log"] = config.replay.capacity * schema.item_bytes + segments
    return {name: int(count) for name, count in needed.items()}


def check_disk(needed: Mapping[str, int], free: int, folder: str) -> Iterator[Finding]:
    """Whether the disk of the runs holds what a run writes.

    Args:
        needed: bytes by what takes them.
        free: bytes free for this user.
        folder: where runs are made.
    """
    remedy = "make room (`apex runs list`, `apex runs rm`), or name another place by APEX_RUNS"
    yield _compared("disk", needed, free, f"free in {folder}", remedy)


def _compared(check: str, needed: Mapping[str, int], free: int, where: str, remedy: str) -> Finding:
    """A finding about a need that is the sum of parts."""
    total = sum(needed.values())
    parts = ", ".join(f"{name} {megabytes(count)}" for name, count in needed.items())
    found = f"{megabytes(free)} {where}"
    expected = f"{megabytes(total)} at most: {parts}"
    if total > free:
        return Finding(check, "problem", found, expected, remedy)
    if total > FULL * free:
        return Finding(check, "warning", found, expected, remedy)
    return Finding(check, "ok", found, expected)
