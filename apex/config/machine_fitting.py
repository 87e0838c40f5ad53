"""Fit a configuration to the cores and the memory of a machine."""

from __future__ import annotations

import logging

import msgspec

from apex.config.sections import Config
from apex.errors import ConfigError

log = logging.getLogger("apex.config.machine_fitting")

REPLAY_MEMORY_SHARE = 0.5
"""Largest share of the machine's memory that a full table may take."""
ACTORS_MEMORY_SHARE = 0.25
"""Largest share of the machine's memory that the actors together may take."""
ACTOR_BYTES = 400e6
"""Resident memory of one actor with torch and eight Atari environments, measured, rounded up."""


def choose_actor_count(config: Config, cores: int, memory_bytes: int) -> Config:
    """Replace `actor.count = 0` by the number of cores less one, at least 2, if memory allows."""
    if config.actor.count:
        return config
    fitting = int(memory_bytes * ACTORS_MEMORY_SHARE / ACTOR_BYTES)
    actor = msgspec.structs.replace(config.actor, count=max(2, min(cores - 1, fitting)))
    return msgspec.structs.replace(config, actor=actor)


def limit_capacity(config: Config, item_bytes: float, memory_bytes: int) -> Config:
    """Lower `replay.capacity` if a full table would not fit the machine's memory.

    Args:
        config: a checked configuration.
        item_bytes: bytes of one item in the table (`Schema.item_bytes`).
        memory_bytes: memory of the machine.

    Raises:
        ConfigError: the table that fits is too small for the other settings.
    """
    affordable = int(memory_bytes * REPLAY_MEMORY_SHARE / item_bytes)
    if config.replay.capacity <= affordable:
        return config
    if affordable < config.min_capacity:
        raise ConfigError(
            f"replay.capacity: {100 * REPLAY_MEMORY_SHARE:.0f} % of this machine's memory holds "
            f"{affordable} items, but the run needs at least {config.min_capacity}; lower "
            "replay.min_size, actor.chunk_length or learner.batch_size, or choose smaller frames"
        )
    log.warning(
        "replay.capacity lowered from %d to %d: a full table may take %.0f %% of the memory",
        config.replay.capacity,
        affordable,
        100 * REPLAY_MEMORY_SHARE,
    )
    replay = msgspec.structs.replace(config.replay, capacity=affordable)
    return msgspec.structs.replace(config, replay=replay)
