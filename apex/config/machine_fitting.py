"""Fit a configuration to the cores and the memory of a machine."""

from __future__ import annotations

import logging
from typing import NamedTuple

import msgspec

from apex.config.sections import Config
from apex.errors import ConfigError

log = logging.getLogger("apex.config.machine_fitting")

REPLAY_MEMORY_SHARE = 0.5
"""Largest share of the memory that a full table may take."""
ACTORS_MEMORY_SHARE = 0.25
"""Largest share of the memory that the actors together may take."""
ACTOR_BYTES = 400e6
"""Resident memory of one actor with torch and eight Atari environments, measured, rounded up."""
SHARE_BESIDE_ACTORS = 1 / 3
"""Largest share of the cores that `actor.count = 0` leaves to everything but the actors."""
MIN_ACTORS = 2


class Memory(NamedTuple):
    """Memory that a run may take shares of, in bytes."""

    total: int
    """The machine's memory, or the limit of its cgroup."""
    available: int | None = None
    """What is free or reclaimable now; None: leave this moment out of consideration."""

    @property
    def usable(self) -> int:
        """The smaller of both."""
        return self.total if self.available is None else min(self.total, self.available)

    def __str__(self) -> str:
        """Which of both it is, for messages."""
        if self.usable == self.total:
            return "this machine's memory"
        gigabytes = f"{self.usable / 1e9:.1f} of {self.total / 1e9:.1f} GB"
        return f"the memory that is available now ({gigabytes})"


def choose_actor_count(config: Config, cores: int, memory: Memory, *, gpu: bool) -> Config:
    """Replace `actor.count = 0` by the number of actors that the cores and the memory allow.

    Args:
        config: a checked configuration.
        cores: cores of the machine.
        memory: memory of the machine.
        gpu: whether torch can use a GPU.
    """
    if config.actor.count:
        return config
    wanted = max(MIN_ACTORS, cores - cores_beside_actors(config, cores, gpu=gpu))
    count = max(MIN_ACTORS, min(wanted, int(memory.usable * ACTORS_MEMORY_SHARE / ACTOR_BYTES)))
    if count < wanted:
        log.warning(
            "%d actors instead of %d: together they may take %.0f %% of %s",
            count, wanted, 100 * ACTORS_MEMORY_SHARE, memory,
        )  # fmt: skip
    actor = msgspec.structs.replace(config.actor, count=count)
    return msgspec.structs.replace(config, actor=actor)


def cores_beside_actors(config: Config, cores: int, *, gpu: bool) -> int:
    """Cores that `actor.count = 0` leaves to everything but the actors.

    An actor fills a core. So does the training thread (on a CPU `learner.torch_threads` of them;
    with a GPU one, which launches its kernels), and at full speed the replay server's thread and
    the inference server. Decode threads wait for batches half of the time or more, so two of them
    count as one. The evaluator plays at niceness 15, often, on one core.

    On a small machine these parts have less to do and share the cores of the actors, so they get at
    most a third of the cores, but at least one: 2 actors on 2 or 3 cores, 3 on 4, 11 on 16.

    Args:
        config: a checked configuration.
        cores: cores of the machine.
        gpu: whether torch can use a GPU.
    """
    on_gpu = gpu and config.learner.device != "cpu"
    needed = 1 if on_gpu else config.learner.torch_threads
    needed += 1  # replay
    needed += (config.learner.decode_threads + 1) // 2
    needed += config.evaluator.enabled
    if config.central:
        central_on_gpu = gpu and config.inference_device != "cpu"
        needed += 1 if central_on_gpu else config.inference.torch_threads
    return max(1, min(needed, int(cores * SHARE_BESIDE_ACTORS)))


def limit_capacity(config: Config, item_bytes: float, memory: Memory) -> Config:
    """Lower `replay.capacity` if a full table would not fit the machine's memory.

    Args:
        config: a checked configuration.
        item_bytes: estimated bytes of one item in the table.
        memory: memory of the machine.

    Raises:
        ConfigError: the table that fits is too small for the other settings.
    """
    affordable = int(memory.usable * REPLAY_MEMORY_SHARE / item_bytes)
    if config.replay.capacity <= affordable:
        return config
    if affordable < config.min_capacity:
        raise ConfigError(
            f"replay.capacity: {100 * REPLAY_MEMORY_SHARE:.0f} % of {memory} holds "
            f"{affordable} items, but the run needs at least {config.min_capacity}; lower "
            "replay.min_size, actor.chunk_length or learner.batch_size, or choose smaller "
            "or grey images"
        )
    log.warning(
        "replay.capacity lowered from %d to %d: a full table may take %.0f %% of %s, at about "
        "%.0f bytes an item; smaller or grey images make room for more",
        config.replay.capacity,
        affordable,
        100 * REPLAY_MEMORY_SHARE,
        memory,
        item_bytes,
    )
    replay = msgspec.structs.replace(config.replay, capacity=affordable)
    return msgspec.structs.replace(config, replay=replay)
