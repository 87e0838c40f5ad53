"""Prepares a run: fits its configuration to the machine and makes its directory."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from apex import checkpoint, machine, user_code
from apex import config as configuration
from apex import endpoints as addresses
from apex.algos.registry import check_schema, make_algorithm
from apex.config import Config, EnvConfig
from apex.env_spec import EnvSpec
from apex.envs.registry import make_environments
from apex.errors import ConfigError, EnvError, EnvFaultError, UsageError
from apex.extensions import NONE, Extensions
from apex.replay.records import segments
from apex.run_directory import RunDirectory, runs_root
from apex.types import Schema
from apex.wire.keys import read_secret

log = logging.getLogger("apex.prepare")

DEFAULT_ALGORITHM = "apex_dqn"
REPLAY_MEMORY_SHARE = 0.5
"""Largest share of the machine's memory that a full table may take."""
ACTORS_MEMORY_SHARE = 0.25
"""Largest share of the machine's memory that the actors together may take."""
ACTOR_BYTES = 400e6
"""Resident memory of one actor with torch and eight Atari environments, measured, rounded up."""
TRIED_STEPS = 3
"""Of a new run's environment, before anything is started."""
COMPRESSED_SHARE = 0.27
"""Compressed size of a frame, as a share of its pixels: the worst of the games measured."""


def new_run_path(name: str) -> Path:
    """A path under `runs_root()` for a run that starts now."""
    base = runs_root() / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    path, suffix = base, 1
    while path.exists():
        suffix += 1
        path = base.with_name(f"{base.name}-{suffix}")
    return path


def preset_config(name: str, settings: Sequence[str]) -> Config:
    """A preset as this machine can run it, with `--set` settings applied.

    Raises:
        ConfigError: an unknown preset, key or type, or values that do not go together.
    """
    return _for_machine(configuration.preset_table(name), settings)


def file_config(path: Path, settings: Sequence[str]) -> Config:
    """A configuration file as this machine can run it, with `--set` settings applied.

    Raises:
        ConfigError: as `preset_config`.
    """
    return _for_machine(configuration.read_toml(path), settings)


def bare_config(settings: Sequence[str]) -> Config:
    """The defaults of every key, with an environment that the settings name.

    Raises:
        ConfigError: as `preset_config`.
        UsageError: no environment is named.
    """
    if not any(setting.startswith("env.id=") for setting in settings):
        raise UsageError("expected --preset NAME, --config FILE or --env ID (or --resume)")
    return _for_machine({"algorithm": {"name": DEFAULT_ALGORITHM}}, settings)


def run_name(config: Config) -> str:
    """What a run is called where its environment is no preset's: after the environment."""
    name = user_code.short(config.env.id).rpartition(":")[2]
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower()


def _for_machine(raw: dict[str, Any], settings: Sequence[str]) -> Config:
    """Lay the part for this machine and the settings over a raw table, and check it."""
    raw = configuration.override(raw, settings)
    gpu = machine.has_gpu() and raw.get("learner", {}).get("device") != "cpu"
    raw = configuration.override(configuration.overlaid(raw, gpu=gpu), settings)
    return fit_to_cores(configuration.parse(raw))


def fit_to_cores(config: Config) -> Config:
    """Fill in `actor.count = 0`: one a core but one, as far as memory goes, at least two."""
    if config.actor.count:
        return config
    fitting = int(machine.memory_bytes() * ACTORS_MEMORY_SHARE / ACTOR_BYTES)
    count = max(2, min(machine.cores() - 1, fitting))
    actor = msgspec.structs.replace(config.actor, count=count)
    return msgspec.structs.replace(config, actor=actor)


def fit_to_memory(config: Config, schema: Schema) -> Config:
    """Lower `replay.capacity` where a full table would not fit this machine's memory."""
    affordable = int(machine.memory_bytes() * REPLAY_MEMORY_SHARE / item_bytes(schema))
    if config.replay.capacity <= affordable:
        return config
    log.warning(
        "replay.capacity lowered from %d to %d: a full table may take %.0f %% of the memory",
        config.replay.capacity,
        affordable,
        100 * REPLAY_MEMORY_SHARE,
    )
    replay = msgspec.structs.replace(config.replay, capacity=affordable)
    return msgspec.structs.replace(config, replay=replay)


def item_bytes(schema: Schema) -> float:
    """Estimated bytes of one item in the table."""
    overhead = 100
    columns = sum(
        np.dtype(column.dtype).itemsize * int(np.prod(column.shape, dtype=np.int64))
        for column in schema.columns
    )
    frames = schema.frames.frame_bytes * COMPRESSED_SHARE if schema.frames else 0
    return overhead + columns + frames


def check_config(config: Config, extensions: Extensions = NONE) -> tuple[Config, EnvSpec, Schema]:
    """Make the environment once to learn its spaces, and type the algorithm's section.

    Returns:
        The configuration with all of the algorithm's keys, the environment, and the schema of
        the items that the algorithm makes of it.

    Raises:
        ApexError: the configuration or the environment is unusable.
    """
    configuration.check(config)
    config = _with_absolute_paths(config)
    spec = _tried(config.env, extensions)
    algorithm = make_algorithm(config.algorithm, spec, extensions.algorithm)
    section = msgspec.to_builtins(algorithm.config)
    return msgspec.structs.replace(config, algorithm=section), spec, algorithm.schema()


def _with_absolute_paths(config: Config) -> Config:
    """What names a user's own file names it for every daemon, wherever that runs."""
    algorithm = {**config.algorithm, "name": user_code.absolute(config.algorithm["name"])}
    env = msgspec.structs.replace(config.env, id=user_code.absolute(config.env.id))
    return msgspec.structs.replace(config, algorithm=algorithm, env=env)


def _tried(env: EnvConfig, extensions: Extensions) -> EnvSpec:
    """Make the environment and play a few random steps, lest every actor finds the same fault."""
    environments = make_environments(env, 1, extensions.make_env)
    spec, rng = environments.spec, np.random.default_rng(0)
    try:
        environments.reset(seed=0)
        for _ in range(TRIED_STEPS):
            environments.step(spec.random_actions(1, rng))
    except EnvFaultError as error:
        raise EnvError(str(error)) from None
    finally:
        environments.close()
    return spec


def prepare_run(
    path: Path,
    config: Config,
    endpoints_file: Path | None = None,
    extensions: Extensions = NONE,
) -> RunDirectory:
    """Make a run's directory.

    Raises:
        ApexError: the configuration, the environment, the endpoints or the directory is unusable.
    """
    run = RunDirectory(path)
    run.check_unused()
    endpoints = addresses.load(endpoints_file or addresses.default_file())
    if endpoints.keys:
        read_secret(Path(endpoints.keys) / "server.secret")
    config = fit_to_cores(config)
    if config.central:
        endpoints.of("inference.act")
    config, spec, schema = check_config(config, extensions)
    config = fit_to_memory(config, schema)
    configuration.check(config)
    _check_init_from(config, spec)
    run.create(config, addresses.resolve(endpoints, run.path), spec, schema)
    return run


def _check_init_from(config: Config, spec: EnvSpec) -> None:
    """Raise unless `run.init_from` is empty or names a checkpoint of a like environment."""
    if not config.run.init_from:
        return
    env = checkpoint.find(Path(config.run.init_from)).manifest.env
    if (env.policy_shape, env.actions_text) != (spec.policy_shape, spec.actions_text):
        raise ConfigError(
            f"run.init_from: that checkpoint is of {env.env_id} with observations "
            f"{env.policy_shape} and {env.actions_text}, expected {spec.policy_shape} "
            f"and {spec.actions_text}"
        )


def resume_run(run: RunDirectory, settings: Sequence[str]) -> Config:
    """Get a run ready to go on, with settings applied to its own configuration.

    Raises:
        ConfigError: a setting does not fit.
        RunError: the run cannot go on: its items would change, or it came from a script.
    """
    facts = run.check_kept_environment()
    raw: dict[str, Any] = configuration.read_toml(run.config_file)
    config = fit_to_cores(configuration.parse(configuration.override(raw, settings)))
    before = run.config().replay.capacity
    if not segments(run.replay) or config.replay.durability == "off":
        config = fit_to_memory(config, facts.schema)
    elif config.replay.capacity != before:
        raise ConfigError(
            f"replay.capacity: {run.replay} holds a table of {before} items, not of "
            f"{config.replay.capacity}; leave it, or remove that directory to start empty"
        )
    configuration.check(config)
    check_schema(make_algorithm(config.algorithm, facts.env), facts.schema)
    run.write_config(config)
    return config
