"""Typed sections of the configuration, and the checks across sections."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from apex.config.conversion import convert
from apex.errors import ConfigError

PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
NonNegativeInt = Annotated[int, msgspec.Meta(ge=0)]
PositiveFloat = Annotated[float, msgspec.Meta(gt=0)]
NonNegativeFloat = Annotated[float, msgspec.Meta(ge=0)]
UnitFloat = Annotated[float, msgspec.Meta(ge=0, le=1)]
Decay = Annotated[float, msgspec.Meta(ge=0, lt=1)]
"""Decay of a moving average; with 1 the average would never change."""
Threads = Annotated[int, msgspec.Meta(ge=1, le=1024)]
Niceness = Annotated[int, msgspec.Meta(ge=0, le=19)]
"""19 is the kernel's maximum."""

MAX_ACTORS = 10_000
"""Bound of `actor.count`, above what a server can keep track of."""
MAX_BATCH_SIZE = 65_536
"""Largest batch that the replay server serves, in items."""

MetricName = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
MAX_METRICS = 32
"""Most names in `env.metrics`; heartbeats carry their values."""

MAX_SEED = 2**63 - 1
"""Largest integer of TOML; torch's generator takes seeds of at most 64 bits."""


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of every section: frozen; an unknown key is an error."""


class AlgorithmConfig(Section, frozen=True):
    """Keys that the `[algorithm]` section of every algorithm has."""

    name: str = ""
    """An algorithm of apex or of an installed package, or `path/to/file.py:Class`."""


class RunConfig(Section, frozen=True):
    """End conditions and limits of the run."""

    seed: Annotated[int, msgspec.Meta(ge=0, le=MAX_SEED)] = 1
    """Seed from which the seeds of environments, exploration and initial parameters derive."""
    max_env_steps: NonNegativeInt = 0
    """Environment steps, of all actors together, after which the run ends; 0: never."""
    max_hours: NonNegativeFloat = 0.0
    """Hours of training, including those before a resume, after which the run ends; 0: never."""
    until_return: float | None = None
    """Mean return of an evaluation at which the run ends."""
    init_from: str = ""
    """Checkpoint or run whose parameters a new run starts with; empty: random parameters."""
    watchdog_s: PositiveFloat = 60.0
    """Seconds without progress of its work loop after which a daemon ends itself (exit code 80)."""
    max_crashes: PositiveInt = 8
    """Consecutive crashes, each within 20 s of a start, after which a daemon stays down."""
    log_max_mb: PositiveFloat = 20.0
    """Size of a log file, in megabytes, at which it is rotated; one older file is kept."""
    metrics_max_mb: PositiveFloat = 64.0
    """Size of a metrics file, in megabytes, at which it is rotated; one older file is kept."""


ATARI_FIELDS = (
    "frame_skip", "obs_type", "frame_size", "repeat_action_probability", "noop_max", "fire_reset",
    "full_action_space", "max_episode_frames",
)  # fmt: skip
"""Fields of `EnvConfig` without effect on other environments."""


class EnvConfig(Section, frozen=True):
    """The environment. The fields from `frame_skip` on, except `life_loss_ends`, have an effect on
    Atari (`ALE/...`) only."""

    id: str
    """gymnasium id, `ALE/Name-v5`, or `module:Id` or `path/to/file.py:Id`, where the module
    registers or defines `Id`."""
    kwargs: dict[str, Any] = {}
    """Keyword arguments of `gymnasium.make`; must be empty for Atari."""
    frame_stack: NonNegativeInt = 0
    """Consecutive images in one observation of the policy; 0: 4 for Atari images, else 1. Vectors
    cannot be stacked: more than 1 is an error."""
    image_channels: Literal["auto", "first", "last"] = "auto"
    """Axis of an image of three axes that has its channels. `auto`: the axes of equal length are
    height and width, if exactly two are equal; else the shorter of the first and the last axis has
    the channels. No effect on Atari."""
    action_masks: bool | None = None
    """Whether `info["action_mask"]` is the mask of allowed actions. Without a value, it is if the
    first reset returns one; the run's `config.toml` has the answer. The key `action_mask` of a
    `Dict` observation is always used as the mask, if its shape fits."""
    action_limit: NonNegativeFloat = 0.0
    """Bound of continuous actions that have none: an infinite `low` of the action space becomes
    -limit, an infinite `high` limit. 0: such a space is an error."""
    clip_rewards: bool = False
    """Clip the rewards that the policy sees and learns from to [-1, 1]; returns stay unclipped."""
    normalize_observations: bool = False
    """Normalise observations to mean 0 and variance 1, by a running statistic of all actors, and
    clip them to [-10, 10]. Only vectors of floats: images, bytes and choices are not changed."""
    normalize_rewards: bool = False
    """Divide the rewards that the policy sees and learns from by the standard deviation of
    discounted returns, a running statistic of all actors. Reported returns are not divided."""
    metrics: Annotated[tuple[MetricName, ...], msgspec.Meta(max_length=MAX_METRICS)] = ()
    """Names of scalars in `info` that become curves, besides `success`: the value at each episode's
    last step, averaged over the episodes that have it."""
    max_episode_steps: NonNegativeInt = 0
    """Steps after which an episode is truncated, in training and evaluation; 0: the environment's
    own limit. It replaces the limit that gymnasium applies to a registered environment; one inside
    the environment stays. On Atari, this limit or `max_episode_frames` ends the episode, whichever
    is first, and the no-ops at the start count."""
    frame_skip: PositiveInt = 4
    """Emulator frames per step; the action is repeated in each."""
    obs_type: Literal["grayscale", "rgb", "ram"] = "grayscale"
    """Observation: the screen, or the 128 bytes of the console's memory."""
    frame_size: tuple[PositiveInt, PositiveInt] = (84, 84)
    """Height and width of a frame in pixels."""
    repeat_action_probability: UnitFloat = 0.0
    """Probability of a sticky action; Machado et al., 2018, recommend 0.25."""
    noop_max: NonNegativeInt = 30
    """Largest random number of no-op steps at the start of an episode."""
    fire_reset: bool = True
    """Press FIRE at the start of an episode, if the game has that action."""
    life_loss_ends: bool = False
    """Learn from a lost life (`info["lives"]`) as from the end of an episode; the episode itself
    continues."""
    full_action_space: bool = False
    """Offer all 18 actions of the console instead of only those with an effect in the game."""
    max_episode_frames: PositiveInt = 108_000
    """Emulator frames after which an episode is truncated."""


class ActorConfig(Section, frozen=True):
    """The processes that step environments."""

    count: Annotated[int, msgspec.Meta(ge=0, le=MAX_ACTORS)] = 0
    """Actors that the engine starts; 0: one for each core that training, replay, decoding,
    evaluation and central inference leave, as memory allows, at least two."""
    num_envs: PositiveInt = 8
    """Environments per actor, stepped together."""
    async_envs: bool = False
    """Step each environment in a process of its own, so that a slow one does not hold up the
    others; needs local inference. Worth it where a step takes many milliseconds."""
    env_timeout_s: PositiveFloat = 300.0
    """With `async_envs`: seconds that making, resetting or stepping an environment may take. After
    that its process is killed, and the environment is made again."""
    chunk_length: PositiveInt = 50
    """Items per insert, all of one environment."""
    parameter_period: NonNegativeInt = 0
    """Steps of the actor's environments (frames = this x frame_skip) between parameter requests; 0:
    by time (`parameter_period_s`)."""
    parameter_period_s: PositiveFloat = 0.25
    """Seconds between two requests for newer parameters, if `parameter_period` is 0."""
    inference: Literal["local", "central"] = "local"
    """Where actions are computed: in each actor, or in one inference server for all (SEED RL)."""
    torch_threads: Threads = 1
    """Threads on which an actor computes actions, if actor.inference is local."""
    nice: Niceness = 10
    """Added to the process's niceness once it steps, so that starting processes run first."""
    learner_patience_s: PositiveFloat = 600.0
    """Seconds without a learner after which an attached actor ends (exit code 75)."""


class InferenceConfig(Section, frozen=True):
    """The process that computes the actions of all actors, if actor.inference is central."""

    max_batch: PositiveInt = 256
    """Most environments in one call of the network, unless a single actor has more."""
    max_wait_ms: NonNegativeFloat = 2.0
    """Milliseconds that the first request of a batch waits for others; 0 once all are there."""
    device: str = "auto"
    """`auto` (CUDA if there is one; the CPU if the learner is on it), `cpu`, `cuda` or `cuda:N`."""
    torch_threads: Threads = 1
    """Threads (cores) of one call of the network, without a GPU."""
    nice: Niceness = 10
    """Added to the process's niceness once it computes actions."""


class ReplayConfig(Section, frozen=True):
    """The table of the replay server."""

    capacity: PositiveInt = 100_000
    """Largest number of items; lowered at the start of a run to what half of the available memory
    holds."""
    min_size: PositiveInt = 1_000
    """Items in the table before the first sample is served."""
    selector: Literal["prioritized", "uniform", "fifo"] = "prioritized"
    """How items are chosen: in proportion to priority^alpha, uniformly, or oldest first."""
    priority_exponent: UnitFloat = 0.6
    """alpha of the prioritized selector."""
    max_times_sampled: NonNegativeInt = 0
    """Samples after which an item is removed; 0: no limit, 1: a queue."""
    samples_per_insert: NonNegativeFloat = 0.0
    """Samples served per inserted item; 0: no fixed ratio."""
    tolerance: NonNegativeFloat = 0.0
    """Samples by which that ratio may be off either way; 0: the smallest that cannot deadlock."""
    durability: Literal["off", "log", "sync"] = "log"
    """What an acknowledged insert survives: nothing (off), a crash of processes and, except for the
    last second, of the machine (log), or a crash of the machine (sync)."""
    segment_mb: PositiveFloat = 64.0
    """Size of an insert log file in megabytes; a file is removed once all its items are evicted."""
    save_period_s: PositiveFloat = 30.0
    """Seconds between two saves of the priorities."""


class LearnerConfig(Section, frozen=True):
    """The process that trains the network."""

    batch_size: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH_SIZE)] = 32
    """Items per learner step."""
    prefetch: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    """Batches that are requested, or decoded and waiting."""
    decode_threads: Threads = 1
    """Threads that decompress frames and collate batches."""
    device: str = "auto"
    """`auto` (CUDA if there is one), `cpu`, `cuda` or `cuda:N`."""
    torch_threads: Threads = 1
    """Threads (cores) of one learner step, without a GPU."""
    nice: Niceness = 10
    """Added to the process's niceness once it trains, so that starting processes run first."""
    pin: bool = True
    """Whether to reserve `torch_threads` cores for the training thread; the run's other threads and
    daemons stay off them. Without effect if no other core would be left, or under a CPU quota."""
    execution: Literal["auto", "eager", "graph", "compile"] = "auto"
    """How an update runs on a GPU: by Python (eager), as a CUDA graph that is recorded once and
    replayed (graph), or as such a graph of compiled networks (compile; needs a C compiler). `auto`
    times eager and graph at the start, and takes the faster one. A CPU runs updates eagerly."""
    precision: Literal["auto", "float32", "tf32", "bfloat16"] = "auto"
    """Arithmetic of the networks: float32, with TF32 products (a GPU), or bfloat16 by autocast,
    except for recurrent and output layers. `auto`: tf32 on a GPU, float32 on a CPU."""
    publish_period: NonNegativeInt = 0
    """Learner steps between two publications of the parameters; 0: by time (`publish_period_s`),
    and every 25 in one process (`--serial`)."""
    publish_period_s: PositiveFloat = 0.25
    """Seconds between two publications, if `publish_period` is 0."""
    checkpoint_period_s: PositiveFloat = 120.0
    """Seconds between two checkpoints: the training that a killed learner may lose."""
    keep_checkpoints: PositiveInt = 3
    """Number of newest checkpoints to keep, besides the best one."""
    metrics_period_s: PositiveFloat = 10.0
    """Seconds between two records of metrics."""


class EvaluatorConfig(Section, frozen=True):
    """Greedy episodes with the newest parameters: the learning curve."""

    enabled: bool = True
    """Whether to run an evaluator; without one, only the exploring actors report returns."""
    episodes: PositiveInt = 20
    """Whole episodes per evaluation."""
    num_envs: PositiveInt = 4
    """Environments stepped together; `episodes` must be a multiple of it."""
    period_s: PositiveFloat = 60.0
    """Seconds between the starts of two evaluations, if `max_share` allows. The first evaluation
    starts this long after the first learner steps, so that it does not play an untrained network.
    """
    max_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 0.1
    """Largest share of the run's cores that evaluations may use on average."""
    device: str = "auto"
    """`auto` (the learner's GPU if it has one and observations are images, else the CPU), `cpu`,
    `cuda` or `cuda:N`."""
    torch_threads: Threads = 1
    """Threads (cores) of one call of the network, without a GPU."""
    nice: Niceness = 15
    """Added to the process's niceness, so that evaluations use CPU time that is left over."""
    env: dict[str, Any] = {}
    """Keys of `[env]` with other values for evaluations, `apex eval` and `apex enjoy`, such as
    `repeat_action_probability` or `kwargs`. Observations and actions must be those of training.
    With an `id` of its own, the `kwargs` of `[env]` are not used."""


class Config(Section, frozen=True):
    """The configuration of a run. The algorithm that `[algorithm]` names defines its keys."""

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
        """Whether one inference server computes the actions of all actors."""
        return self.actor.inference == "central"

    @property
    def evaluation_env(self) -> EnvConfig:
        """`[env]` with the values of `[evaluator.env]`; a lost life does not count as an end in it.

        Raises:
            ConfigError: a key of `[evaluator.env]` is unknown or has an invalid value.
        """
        given, raw = self.evaluator.env, msgspec.to_builtins(self.env)
        kwargs = given.get("kwargs", {})
        if "id" not in given and isinstance(kwargs, dict):
            kwargs = {**self.env.kwargs, **kwargs}
        env: EnvConfig = convert({**raw, **given, "kwargs": kwargs}, EnvConfig, "evaluator.env")
        return msgspec.structs.replace(env, life_loss_ends=False)

    @property
    def inference_device(self) -> str:
        """The device of central inference: `auto` is the CPU if the learner is on it."""
        device = self.inference.device
        return "cpu" if device == "auto" and self.learner.device == "cpu" else device

    @property
    def min_tolerance(self) -> float:
        """The smallest rate limiter tolerance, in samples, that cannot deadlock.

        With less, the limiter could refuse the batches of all prefetch slots and a waiting chunk
        at the same time.
        """
        return (
            self.learner.batch_size * self.learner.prefetch
            + self.replay.samples_per_insert * self.actor.chunk_length
        )

    @property
    def min_capacity(self) -> int:
        """The smallest `replay.capacity`, in items, that works with the other settings."""
        batch = self.learner.batch_size if self.replay.max_times_sampled else 0
        return max(self.replay.min_size, self.actor.chunk_length, batch)


def check(config: Config) -> None:
    """Raise `ConfigError` if values that are valid alone contradict each other."""
    replay, evaluator = config.replay, config.evaluator
    if not isinstance(name := config.algorithm.get("name"), str):
        found = "nothing" if name is None else repr(name)
        raise ConfigError(f'algorithm.name: expected a string, such as "apex_dqn", got {found}')
    if config.central and config.actor.async_envs:
        raise ConfigError(
            'actor.async_envs needs actor.inference = "local": the inference server decides for '
            "all environments of an actor together; set one of the two"
        )
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
            f"replay.max_times_sampled ({replay.max_times_sampled}): items would be removed before "
            "they were sampled that often, and both sides would wait forever"
        )
    if replay.max_times_sampled and config.learner.batch_size > replay.capacity:
        raise ConfigError(
            f"learner.batch_size ({config.learner.batch_size}) must not exceed replay.capacity "
            f"({replay.capacity}) if replay.max_times_sampled is set"
        )
    if replay.samples_per_insert and 0 < replay.tolerance < config.min_tolerance:
        raise ConfigError(
            f"replay.tolerance = {replay.tolerance:g} could deadlock: expected at least "
            f"batch_size x prefetch + samples_per_insert x chunk_length = {config.min_tolerance:g} "
            "(or 0, which uses exactly that)"
        )
    if "life_loss_ends" in evaluator.env:
        raise ConfigError(
            "evaluator.env.life_loss_ends: evaluations play whole episodes; leave this key out"
        )
    _ = config.evaluation_env
    if evaluator.enabled and evaluator.episodes % evaluator.num_envs:
        raise ConfigError(
            f"evaluator.episodes ({evaluator.episodes}) must be a multiple of evaluator.num_envs "
            f"({evaluator.num_envs}): each environment plays the same number of episodes"
        )
