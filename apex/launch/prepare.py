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

from apex import plugins
from apex.algos.base import Algorithm
from apex.algos.registry import algorithm_class, check_schema, make_algorithm
from apex.config import loading, sections
from apex.config.sections import Config
from apex.daemons.catalog import ACTOR
from apex.data.schema import Schema
from apex.envs.spec import EnvSpec
from apex.errors import ConfigError, UsageError
from apex.host import hardware
from apex.launch.preflight import STEPS, try_algorithm, try_environment
from apex.plugins import NONE, Extensions
from apex.replay.log.records import segments
from apex.runs import checkpoint
from apex.runs.directory import RunDirectory, runs_root
from apex.wire import endpoints as addresses
from apex.wire.keys import read_secret

log = logging.getLogger("apex.launch.prepare")

DEFAULT_ALGORITHM = "apex_dqn"
REPLAY_MEMORY_SHARE = 0.5
"""Largest share of the machine's memory that a full table may take."""
ACTORS_MEMORY_SHARE = 0.25
"""Largest share of the machine's memory that the actors together may take."""
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


def preset_config(
    name: str, settings: Sequence[str], algorithm: type[Algorithm] | None = None
) -> Config:
    """A preset as this machine can run it, with `--set` settings applied.

    Another algorithm than the preset's takes those of its settings that it knows.

    Args:
        name: of the preset.
        settings: like `--set`.
        algorithm: a script's own, instead of the preset's.

    Raises:
        ConfigError: an unknown preset, key or type, or values that do not go together.
    """
    table = loading.preset_table(name)
    own = loading.override({}, settings).get("algorithm", {}).get("name")
    if algorithm is None and isinstance(own, str) and own != table["algorithm"]["name"]:
        algorithm = algorithm_class(plugins.absolute(own))
    if algorithm is not None:
        table = _lent(table, algorithm)
    return _for_machine(table, settings)


def _lent(preset: dict[str, Any], algorithm: type[Algorithm]) -> dict[str, Any]:
    """A preset for another algorithm: without the settings that are none of its own."""
    known = {field.name for field in msgspec.structs.fields(algorithm.Config)}
    strange: set[str] = set()
    for part in (preset, *(preset.get(overlay, {}) for overlay in loading.OVERLAYS)):
        section = part.get("algorithm", {})
        for key in section.keys() - known:
            del section[key]
            strange.add(key)
    if strange:
        text = ", ".join(sorted(strange))
        log.info("settings of the preset that %s does not have: %s", algorithm.__name__, text)
    return preset


def file_config(path: Path, settings: Sequence[str]) -> Config:
    """A configuration file as this machine can run it, with `--set` settings applied.

    Raises:
        ConfigError: as `preset_config`.
    """
    return _for_machine(loading.read_toml(path), settings)


def bare_config(settings: Sequence[str]) -> Config:
    """The defaults of every key, with an environment that the settings name.

    Raises:
        ConfigError: as `preset_config`.
        UsageError: no environment is named.
    """
    if not names_environment(settings):
        raise UsageError("expected --preset NAME, --config FILE or --env ID (or --resume)")
    return _for_machine({"algorithm": {"name": DEFAULT_ALGORITHM}}, settings)


def any_config(preset: str | None, file: Path | None, settings: Sequence[str]) -> Config:
    """What a command line names: a preset, a file, or an environment with defaults.

    Raises:
        ConfigError: as `preset_config`.
        UsageError: both of a preset and a file, or nothing at all.
    """
    if preset is not None and file is not None:
        raise UsageError("--preset NAME and --config FILE are two ways to say the same: leave one")
    if preset is not None:
        return preset_config(preset, settings)
    return file_config(file, settings) if file is not None else bare_config(settings)


def names_environment(settings: Sequence[str]) -> bool:
    """Whether settings say which environment it is."""
    return "id" in loading.override({}, settings).get("env", {})


def run_name(config: Config) -> str:
    """What a run is called where its environment is no preset's: after the environment."""
    name = plugins.short(config.env.id).rpartition(":")[2]
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "run"


def _for_machine(raw: dict[str, Any], settings: Sequence[str]) -> Config:
    """Lay the part for this machine and the settings over a raw table, and check it."""
    raw = loading.override(raw, settings)
    gpu = hardware.has_gpu() and raw.get("learner", {}).get("device") != "cpu"
    raw = loading.override(loading.overlaid(raw, gpu=gpu), settings)
    return fit_to_cores(loading.parse(raw))


def fit_to_cores(config: Config) -> Config:
    """Fill in `actor.count = 0`: one a core but one, as far as memory goes, at least two."""
    if config.actor.count:
        return config
    fitting = int(hardware.memory_bytes() * ACTORS_MEMORY_SHARE / ACTOR.memory_bytes(config))
    count = max(2, min(hardware.cores() - 1, fitting))
    actor = msgspec.structs.replace(config.actor, count=count)
    return msgspec.structs.replace(config, actor=actor)


def fit_to_memory(config: Config, schema: Schema) -> Config:
    """Lower `replay.capacity` where a full table would not fit this machine's memory."""
    affordable = int(hardware.memory_bytes() * REPLAY_MEMORY_SHARE / item_bytes(schema))
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


def check_config(
    config: Config, extensions: Extensions = NONE, *, steps: int = STEPS
) -> tuple[Config, EnvSpec, Schema]:
    """Try the environment and the algorithm, and type the algorithm's section.

    Args:
        config: of the run.
        extensions: what a script brought.
        steps: of the environment that are played.

    Returns:
        The configuration with all of the algorithm's keys, the environment, and the schema of
        the items that the algorithm makes of it.

    Raises:
        ApexError: the configuration, the environment or the algorithm is unusable.
    """
    sections.check(config)
    config = plugins.with_absolute_paths(config)
    spec, observation = try_environment(config.env, extensions, steps=steps)
    algorithm = make_algorithm(config.algorithm, spec, extensions.algorithm)
    try_algorithm(algorithm, observation)
    section = msgspec.to_builtins(algorithm.config)
    return msgspec.structs.replace(config, algorithm=section), spec, algorithm.schema()


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
    sections.check(config)
    _check_init_from(config, spec)
    run.create(config, addresses.resolve(endpoints, run.path), spec, schema)
    return run


def _check_init_from(config: Config, spec: EnvSpec) -> None:
    """Raise unless `run.init_from` is empty or names a checkpoint of a like environment."""
    if not config.run.init_from:
        return
    env = checkpoint.find(Path(config.run.init_from)).manifest.env
    _check_like(env, spec, "run.init_from")


def _check_like(found: EnvSpec, expected: EnvSpec, key: str) -> None:
    """Raise unless one environment's observations and actions are like another's."""
    if (found.policy_shape, found.actions_text) != (expected.policy_shape, expected.actions_text):
        raise ConfigError(
            f"{key}: {found.env_id} has observations {found.policy_shape} and "
            f"{found.actions_text}, expected {expected.policy_shape} and {expected.actions_text}"
        )


def resume_run(run: RunDirectory, settings: Sequence[str]) -> Config:
    """Get a run ready to go on, with settings applied to its own configuration.

    Raises:
        ConfigError: a setting does not fit.
        RunError: the run cannot go on: its items would change, or it came from a script.
    """
    facts = run.check_kept()
    raw: dict[str, Any] = loading.read_toml(run.config_file)
    config = fit_to_cores(loading.parse(loading.override(raw, settings)))
    config = plugins.with_absolute_paths(config)
    if config.env != run.config().env:
        spec, _ = try_environment(config.env, NONE)
        _check_like(spec, facts.env, "env.id")
    before = run.config().replay.capacity
    if not segments(run.replay) or config.replay.durability == "off":
        config = fit_to_memory(config, facts.schema)
    elif config.replay.capacity != before:
        raise ConfigError(
            f"replay.capacity: {run.replay} holds a table of {before} items, not of "
            f"{config.replay.capacity}; leave it, or remove that directory to start empty"
        )
    sections.check(config)
    check_schema(make_algorithm(config.algorithm, facts.env), facts.schema)
    run.write_config(config)
    return config
