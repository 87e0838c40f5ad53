"""The configuration's typed sections, and the checks that span sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from apex.errors import ConfigError

PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
NonNegativeInt = Annotated[int, msgspec.Meta(ge=0)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
NonNegativeFloat = Annotated[float, msgspec.Meta(ge=0)]
UnitFloat = Annotated[float, msgspec.Meta(ge=0, le=1)]
Decay = Annotated[float, msgspec.Meta(ge=0, lt=1)]
"""Of a moving average: with 1 it would never move."""
Threads = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Niceness = Annotated[int, msgspec.Meta(ge=0, le=19)]
"""The kernel knows none beyond 19."""

MAX_ACTORS = 10_000
"""More than any server keeps in its books."""
MAX_BATCH_SIZE = 65_536
"""Items that the replay server gives in one batch."""

MAX_SEED = 2**63 - 1
"""The largest integer of TOML; torch's generator takes none of more than 64 bits."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section: frozen, and an unknown key is refused by its path."""


class AlgorithmConfig(Section, frozen=True):
    """The part of an `[algorithm]` section that every algorithm has."""

    name: str = ""
    """One of apex's own algorithms, an installed package's, or `path/to/file.py:Class`."""


class RunConfig(Section, frozen=True):
    """When the run ends and what it may use."""

    seed: Annotated[int, msgspec.Meta(ge=0, le=MAX_SEED)] = 1
    """Of environments, exploration and initial parameters; each gets its own from it."""
    max_env_steps: NonNegativeInt = 0
    """Environment steps of all actors together after which the run ends; 0: never."""
    max_hours: NonNegativeFloat = 0.0
    """Hours of training, resumed ones included, after which the run ends; 0: never."""
    until_return: float | None = None
    """The run ends when an evaluation's mean return reaches this."""
    init_from: str = ""
    """Checkpoint (or run) whose parameters a new run starts with; empty: random ones."""
    watchdog_s: PositiveFloat = 60.0
    """Seconds without progress of its work loop after which a daemon ends itself."""
    max_crashes: PositiveInt = 8
    """In a row, each within 20 s of a start, after which a daemon is not started again."""
    log_max_mb: PositiveFloat = 20.0
    """Megabytes of one log file; one older file is kept."""
    metrics_max_mb: PositiveFloat = 64.0
    """Megabytes of one metrics file; one older file is kept."""


ATARI_FIELDS = (
    "frame_skip", "obs_type", "frame_size", "repeat_action_probability", "noop_max", "fire_reset",
    "full_action_space", "max_episode_frames",
)  # fmt: skip
"""Of `EnvConfig`, without effect on any other environment."""


class EnvConfig(Section, frozen=True):
    """The environment. Fields from `frame_skip` on are read for Atari (`ALE/...`) only, but for
    `life_loss_ends`."""

    id: str
    """gymnasium id, `ALE/Name-v5`, or `module:Id` or `path/to/file.py:Id`, whose module registers
    or defines it."""
    kwargs: dict[str, Any] = {}
    """Keyword arguments for `gymnasium.make`; Atari takes none."""
    frame_stack: NonNegativeInt = 0
    """Consecutive images in one observation of the policy; 0: 4 for Atari images, else 1. Vectors
    are not stacked: more than 1 is refused."""
    clip_rewards: bool = False
    """Clip the rewards that policies see and learn from to [-1, 1]; reported returns stay whole."""
    frame_skip: PositiveInt = 4
    """Emulator frames of one step, in which the action is repeated."""
    obs_type: Literal["grayscale", "rgb", "ram"] = "grayscale"
    """What is observed: the screen, or the console's 128 bytes of memory."""
    frame_size: tuple[PositiveInt, PositiveInt] = (84, 84)
    """Height and width in pixels."""
    repeat_action_probability: UnitFloat = 0.0
    """Sticky actions: 0.25 is the recommendation of Machado et al., 2018."""
    noop_max: NonNegativeInt = 30
    """Up to this many no-op steps start an episode."""
    fire_reset: bool = True
    """Press FIRE at an episode's start where the game has that action."""
    life_loss_ends: bool = False
    """Learn from a lost life (of `info["lives"]`) as from an episode's end; the episode itself goes
    on."""
    full_action_space: bool = False
    """All 18 actions of the console instead of those that matter in the game."""
    max_episode_frames: PositiveInt = 108_000
    """Emulator frames after which an episode is truncated."""


class ActorConfig(Section, frozen=True):
    """The processes that step environments."""

    count: Annotated[int, msgspec.Meta(ge=0, le=MAX_ACTORS)] = 0
    """Actors that the engine starts; 0: one a core, less one for the learner, at least two."""
    num_envs: PositiveInt = 8
    """Environments that one actor steps together."""
    chunk_length: PositiveInt = 50
    """Items of one environment in one insert."""
    parameter_period: PositiveInt = 100
    """Steps of the actor's environments (frames = this x frame_skip) between two asks."""
    inference: Literal["local", "central"] = "local"
    """Where actions are decided: in each actor, or in one inference server for all (SEED RL)."""
    torch_threads: Threads = 1
    """Of an actor that decides itself."""
    nice: Niceness = 10
    """Added to the process's niceness when it begins to step: who restarts goes first."""
    learner_patience_s: PositiveFloat = 600.0
    """Seconds without the learner after which an attached actor ends (exit code 75)."""


class InferenceConfig(Section, frozen=True):
    """The process that decides for all actors; there is one where actor.inference is central."""

    max_batch: PositiveInt = 256
    """Environments for which one call of the network decides, unless one actor has more."""
    max_wait_ms: NonNegativeFloat = 2.0
    """Milliseconds that the first of a batch waits for others; nobody waits when all are there."""
    device: str = "auto"
    """`auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:N`."""
    torch_threads: Threads = 1
    """Cores on which one call of the network computes, without a GPU."""
    nice: Niceness = 10
    """Added to the process's niceness when it begins to decide."""


class ReplayConfig(Section, frozen=True):
    """The table of the replay server."""

    capacity: PositiveInt = 100_000
    """Items; lowered at the start of a run when the machine's memory would not hold them."""
    min_size: PositiveInt = 1_000
    """Items before the first sample is served."""
    selector: Literal["prioritized", "uniform", "fifo"] = "prioritized"
    """How items are chosen: by priority^alpha, all alike, or the oldest first."""
    priority_exponent: UnitFloat = 0.6
    """alpha of the prioritized selector."""
    max_times_sampled: NonNegativeInt = 0
    """Samples after which an item is removed; 0: no limit, 1: a queue."""
    samples_per_insert: NonNegativeFloat = 0.0
    """Samples served for each inserted item; 0: as fast as both sides can."""
    tolerance: NonNegativeFloat = 0.0
    """Samples by which the ratio may be off either way; 0: the smallest that cannot deadlock."""
    durability: Literal["off", "log", "sync"] = "log"
    """What an acknowledged insert outlives: nothing, the death of processes (and of the machine,
    but for the last second), or the death of the machine."""
    segment_mb: PositiveFloat = 64.0
    """Size of the insert log's files; one is removed when all of its items are evicted."""
    save_period_s: PositiveFloat = 30.0
    """Seconds between two saves of priorities."""


class LearnerConfig(Section, frozen=True):
    """The process that learns."""

    batch_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH_SIZE)] = 32
    """Items of one learner step."""
    prefetch: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    """Batches that are requested or waiting decoded."""
    decode_threads: Threads = 1
    """Threads that decompress frames and collate batches."""
    device: str = "auto"
    """`auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:N`."""
    torch_threads: Threads = 1
    """Cores on which one learner step computes, without a GPU."""
    nice: Niceness = 10
    """Added to the process's niceness when it begins to learn: who restarts goes first."""
    pin: bool = True
    """Whether the training thread gets `torch_threads` cores that the run's other threads and
    daemons keep off; without effect where no other core would be left, or under a CPU quota."""
    publish_period: PositiveInt = 25
    """Learner steps between two publications of parameters."""
    checkpoint_period_s: PositiveFloat = 120.0
    """Seconds between two checkpoints: what a learner that is killed may lose of its learning."""
    keep_checkpoints: PositiveInt = 3
    """Newest checkpoints that are kept, beside the best one."""
    metrics_period_s: PositiveFloat = 10.0
    """Seconds between two lines of metrics."""


class EvaluatorConfig(Section, frozen=True):
    """Greedy episodes with the newest parameters: the learning curve."""

    enabled: bool = True
    """Whether there is an evaluator: without one, only actors report returns, and they explore."""
    episodes: PositiveInt = 20
    """Whole episodes of one evaluation."""
    num_envs: PositiveInt = 4
    """Environments stepped together; `episodes` must be a multiple of it."""
    period_s: PositiveFloat = 60.0
    """Seconds from one evaluation's start to the next one's, if `max_share` allows; also from the
    first learner steps of a run to its first evaluation, so that it does
    not play an untrained network."""
    max_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    """Largest share of the run's cores that evaluations may take on average."""
    nice: Niceness = 15
    """Added to the process's niceness: evaluations take what is left over."""


class Config(Section, frozen=True):
    """Everything about a run. `[algorithm]` is typed by the algorithm that it names."""

    env: EnvConfig
    algorithm: dict[str, Any]
    run: RunConfig = RunConfig()
    actor: ActorConfig = ActorConfig()
    inference: InferenceConfig = InferenceConfig()
    replay: ReplayConfig = ReplayConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluator: EvaluatorConfig = EvaluatorConfig()

    @property
    def central(self) -> bool:
        """Whether one inference server decides for all actors."""
        return self.actor.inference == "central"

    @property
    def min_tolerance(self) -> float:
        """The smallest limiter tolerance, in samples, with which neither side can block for good.

        One batch in flight for each prefetch slot and one chunk that waits may both be refused
        at the same time unless the tolerance covers them.
        """
        return (
            self.learner.batch_size * self.learner.prefetch
            + self.replay.samples_per_insert * self.actor.chunk_length
        )

    @property
    def min_capacity(self) -> int:
        """The smallest `replay.capacity`, in items, with which a run of these settings works."""
        batch = self.learner.batch_size if self.replay.max_times_sampled else 0
        return max(self.replay.min_size, self.actor.chunk_length, batch)


def check(config: Config) -> None:
    """Raise `ConfigError` when valid values do not go together."""
    replay, evaluator = config.replay, config.evaluator
    if not isinstance(name := config.algorithm.get("name"), str):
        found = "nothing" if name is None else repr(name)
        raise ConfigError(f'algorithm.name: expected a string, such as "apex_dqn", got {found}')
    if replay.min_size > replay.capacity:
        raise ConfigError(
            f"replay.min_size ({replay.min_size}) must not exceed replay.capacity "
            f"({replay.capacity}): the first sample would never be served"
        )
    if config.actor.chunk_length > replay.capacity:
        raise ConfigError("actor.chunk_length must not exceed replay.capacity")
    if replay.max_times_sampled == 0 and replay.selector == "fifo":
        raise ConfigError('replay.selector = "fifo" needs replay.max_times_sampled of at least 1')
    if 0 < replay.max_times_sampled < replay.samples_per_insert:
        raise ConfigError(
            f"replay.samples_per_insert ({replay.samples_per_insert:g}) must not exceed "
            f"replay.max_times_sampled ({replay.max_times_sampled}): items would be gone before "
            "they were sampled that often, and both sides would wait for good"
        )
    if replay.max_times_sampled and config.learner.batch_size > replay.capacity:
        raise ConfigError(
            f"learner.batch_size ({config.learner.batch_size}) must not exceed replay.capacity "
            f"({replay.capacity}) where replay.max_times_sampled is set"
        )
    if replay.samples_per_insert and 0 < replay.tolerance < config.min_tolerance:
        raise ConfigError(
            f"replay.tolerance = {replay.tolerance:g} could deadlock: expected at least "
            f"batch_size x prefetch + samples_per_insert x chunk_length = {config.min_tolerance:g} "
            "(or 0, which takes just that)"
        )
    if evaluator.enabled and evaluator.episodes % evaluator.num_envs:
        raise ConfigError(
            f"evaluator.episodes ({evaluator.episodes}) must be a multiple of evaluator.num_envs "
            f"({evaluator.num_envs}): each environment plays the same number of episodes"
        )
