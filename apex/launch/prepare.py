"""Prepare a run: turn a user's configuration into a run directory.

Each step's result is the next step's argument:

    loading.read_table              read a preset or a file, and settings: Table
    configure                       apply the part for this machine, type, check, fit to its cores
    preflight.try_config            try the environment and the algorithm: Trial
    machine_fitting.limit_capacity  fit to the machine's memory: Config
    RunDirectory.create             write the run's directory
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from apex import plugins
from apex.algos.base import Algorithm
from apex.algos.registry import algorithm_class, check_schema, make_algorithm
from apex.algos.restoring import load_parameters, restore_learner
from apex.config import loading, machine_fitting
from apex.config.conversion import convert
from apex.config.loading import OVERLAYS, Table
from apex.config.machine_fitting import Memory
from apex.config.sections import Config
from apex.daemons.learner.running_statistics import check_unchanged
from apex.envs.spec import EnvSpec
from apex.errors import ApexError, ConfigError, UsageError
from apex.execution.settings import check_settings
from apex.host import hardware, process_tuning
from apex.host.files import remove
from apex.launch.preflight import (
    envs_to_try,
    try_config,
    try_environment,
    try_evaluation_environment,
)
from apex.plugins import NONE, Extensions
from apex.replay.log.records import segments
from apex.runs import checkpoint, provenance
from apex.runs.directory import RunDirectory, check_runs_root, claim_run_path
from apex.wire import endpoints as addresses
from apex.wire.curve_keys import read_secret

log = logging.getLogger("apex.launch.prepare")

UNUSABLE_GPU = (
    "torch %s cannot use the GPU of this machine, so that the part of the configuration for "
    "machines without a GPU applies; `apex doctor` says why"
)


def new_run(
    table: Table,
    path: Path | None = None,
    endpoints_file: Path | None = None,
    extensions: Extensions = NONE,
) -> RunDirectory:
    """Make the directory of a new run.

    Args:
        table: the configuration as the user wrote it.
        path: the run's directory; default: a new one under `runs_root()`.
        endpoints_file: default: the installed endpoints file.
        extensions: a script's own environment and algorithm.

    Raises:
        ApexError: the configuration, the environment, the endpoints or the directory is unusable.
    """
    config = configure(table, extensions.algorithm)
    if extensions != NONE:
        config = plugins.with_extensions(config, extensions)
    name = table.name or run_name(config)
    return prepare_run(path, config, endpoints_file, extensions, preset=table.preset, name=name)


def configure(table: Table, algorithm: type[Algorithm] | None = None) -> Config:
    """Turn a table into a configuration for this machine.

    Applies the part for this machine, types and checks the values, and fits them to its cores.

    Args:
        table: the configuration as the user wrote it.
        algorithm: a script's own algorithm; replaces the one that the table names.

    Raises:
        ConfigError: an unknown key, a wrong type, or values that contradict each other.
    """
    table = _for_algorithm(table, algorithm)
    machine, gpu = hardware.this_machine(), torch.cuda.is_available()
    if machine.has_gpu and not gpu:
        log.warning(UNUSABLE_GPU, torch.__version__)
    config = loading.parse(loading.apply_overlay(table, gpu=gpu))
    memory = Memory(machine.memory_bytes, machine.available_bytes)
    return machine_fitting.choose_actor_count(config, machine.cores, memory, gpu=gpu)


def preset_config(
    name: str, settings: Sequence[str], algorithm: type[Algorithm] | None = None
) -> Config:
    """Make the configuration of a preset, with settings as of `--set`.

    Raises:
        ConfigError: an unknown preset, or as `configure`.
    """
    return configure(loading.read_table(name, settings=settings), algorithm)


def check_script_config(config: Config) -> Config:
    """Check a script's own `Config`, and fit it to this machine's cores.

    Raises:
        ConfigError: an invalid value, or values that contradict each other.
    """
    try:
        table = msgspec.to_builtins(config)
    except TypeError as error:  # such as an object in env.kwargs
        raise ConfigError(
            f"configuration: {error}; expected values that TOML can hold; to make an environment "
            "with other values, pass a function as make_env"
        ) from None
    config, machine = loading.parse(table), hardware.this_machine()
    memory, gpu = Memory(machine.memory_bytes, machine.available_bytes), torch.cuda.is_available()
    return machine_fitting.choose_actor_count(config, machine.cores, memory, gpu=gpu)


def _for_algorithm(table: Table, algorithm: type[Algorithm] | None) -> Table:
    """Drop a preset's `[algorithm]` keys that another algorithm does not have.

    Args:
        table: the table of a preset; that of a file is returned unchanged.
        algorithm: a script's own algorithm; None: the one that the settings name.
    """
    if not table.preset:
        return table
    named = table.settings.get("algorithm", {}).get("name")
    own = table.written["algorithm"]["name"]
    if algorithm is None and isinstance(named, str) and named != own:
        algorithm = algorithm_class(plugins.absolute(named))
    return table if algorithm is None else _without_unknown_keys(table, algorithm)


def _without_unknown_keys(table: Table, algorithm: type[Algorithm]) -> Table:
    known = {field.name for field in msgspec.structs.fields(algorithm.Config)}
    written, unknown = copy.deepcopy(table.written), set()
    for part in (written, *(written.get(overlay, {}) for overlay in OVERLAYS)):
        section = part.get("algorithm", {})
        for key in section.keys() - known:
            del section[key]
            unknown.add(key)
    if unknown:
        text = ", ".join(sorted(unknown))
        log.info("preset keys ignored because %s does not have them: %s", algorithm.__name__, text)
    return table._replace(written=written)


def run_name(config: Config) -> str:
    """Name of a run after its environment, for a run whose environment is not its preset's."""
    name = plugins.short(config.env.id).rpartition(":")[2]
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-").lower() or "run"


def prepare_run(
    path: Path | None,
    config: Config,
    endpoints_file: Path | None = None,
    extensions: Extensions = NONE,
    *,
    preset: str = "",
    name: str = "run",
) -> RunDirectory:
    """Try a configuration, fit it to this machine's memory, and make the run's directory.

    Args:
        path: the run's directory; None: a new one under `runs_root()`.
        config: configuration of `configure` or `check_script_config`.
        endpoints_file: default: the installed endpoints file.
        extensions: a script's own environment and algorithm.
        preset: name of the configuration's preset, for `run.json`.
        name: name of a new directory, to which the time is added.

    Raises:
        ApexError: the configuration, the environment, the endpoints or the directory is unusable.
    """
    if path is None:
        check_runs_root()
    else:
        RunDirectory(path).check_unused()
    endpoints = addresses.load(endpoints_file)
    if endpoints.keys:
        read_secret(Path(endpoints.keys) / "server.secret")
    if config.central:
        endpoints.of("inference.act")
    trial = try_config(config, extensions)
    machine, item_bytes = hardware.this_machine(), trial.item_bytes
    config = machine_fitting.limit_capacity(
        trial.config, item_bytes, Memory(machine.memory_bytes, machine.available_bytes)
    )
    if config.run.init_from:
        source = checkpoint.find(Path(config.run.init_from))
        _check_like(source.manifest.env, trial.spec, "run.init_from")
        check_unchanged(config.env, source.manifest.config["env"], str(source.path))
        load_parameters(trial.algorithm.learner(torch.device("cpu")), source, "run.init_from")
    more = provenance.files_of_new_run(machine, preset)
    run = RunDirectory(claim_run_path(name) if path is None else path)
    try:
        run.create(config, endpoints, trial.spec, trial.schema, more)
    except BaseException:  # Ctrl-C, too, leaves no empty directory
        if path is None:
            remove(run.path)
        raise
    return run


def _check_like(found: EnvSpec, expected: EnvSpec, key: str) -> None:
    """Raise `ConfigError` unless two environments have the same observations and actions."""
    texts = [(s.observations_text, s.actions_text, s.frame_stack) for s in (found, expected)]
    if texts[0] != texts[1]:
        raise ConfigError(
            f"{key}: {found.env_id} has observations {found.observations_text} and "
            f"{found.actions_text}, expected {expected.observations_text} and "
            f"{expected.actions_text}"
        )


def resume_run(run: RunDirectory, settings: Sequence[str]) -> Config:
    """Prepare a run for a resume, with settings applied to its configuration.

    Raises:
        ConfigError: a setting is invalid.
        CheckpointError: another user may have written the checkpoint.
        RunError: the run cannot be resumed: its items would change, or a script started it.
    """
    table = loading.read_table(file=run.config_file, settings=settings)
    with loading.name_in_errors(run.config_file):
        before: Config = convert(table.written, Config)
    facts = run.check_kept(before)
    config = plugins.with_absolute_paths(configure(table))
    # A run of apex 0.1 does not say whether it has masks; it has none, whatever `info` offers.
    masks = bool(config.env.action_masks)
    tried = msgspec.structs.replace(
        config, env=msgspec.structs.replace(config.env, action_masks=masks)
    )
    if config.env != before.env:
        check_unchanged(config.env, msgspec.to_builtins(before.env), str(run.path))
        _, spec, _ = try_environment(tried.env, NONE, num_envs=envs_to_try(config))
        _check_like(spec, facts.env, "env.id")
    if config.evaluation_env != before.evaluation_env:
        try_evaluation_environment(tried, facts.env, NONE)
    if not segments(run.replay) or config.replay.durability == "off":
        # Not by what is available now: the run's capacity stays when other programs come and go.
        memory = Memory(hardware.memory_bytes())
        config = machine_fitting.limit_capacity(config, facts.schema.item_bytes, memory)
    elif config.replay.capacity != before.replay.capacity:
        raise ConfigError(
            f"replay.capacity: {run.replay} holds a table of {before.replay.capacity} items, not "
            f"of {config.replay.capacity}; do not set it, or remove that directory to start empty"
        )
    algorithm = make_algorithm(config.algorithm, facts.env, env=config.env)
    check_schema(algorithm, facts.schema)
    _check_checkpoint(run, algorithm)
    if config.central:
        run.endpoints().of("inference.act")
    check_settings(config.learner, process_tuning.pick_device(config.learner.device))
    run.write_config(config)
    provenance.add_command(run)
    return config


def _check_checkpoint(run: RunDirectory, algorithm: Algorithm) -> None:
    """Load the checkpoint from which the learner will resume, if any, to see whether it fits.

    Raises:
        CheckpointError: the learner would refuse to resume from it.
        ConfigError: the algorithm's networks or optimizers have changed.
    """
    found = checkpoint.newest(run.checkpoints)
    if found is None:
        return
    try:
        restore_learner(algorithm.learner(torch.device("cpu")), found)
    except ApexError:
        raise
    except plugins.RAISED as error:
        name = plugins.short(algorithm.config.name)
        raise ConfigError(
            f"algorithm '{name}': loading {found.path} {plugins.describe_error(error)}"
        ) from error


def check_preset(run: RunDirectory, preset: str) -> None:
    """Check that a run was made from a preset, or that the preset gives the same configuration.

    Raises:
        ConfigError: an unknown preset.
        UsageError: the run was made from another configuration.
    """
    table = loading.read_table(preset)
    origin = provenance.read(run)
    made_from = "" if origin is None else origin.preset
    if preset == made_from or _would_configure(table, run):
        return
    raise UsageError(
        f"--preset {preset}: {run.path} was made from "
        f"{f'the preset {made_from}' if made_from else 'another configuration'}; --resume "
        "continues with that: leave out --preset, or start a new run without --resume"
    )


def _would_configure(table: Table, run: RunDirectory) -> bool:
    """Whether a table gives the same configuration as a run's.

    What was fitted to the memory available at the run's start is not compared: an actor count that
    the table leaves to the machine, and a capacity below the table's.
    """
    facts, own = run.facts(), run.config()
    try:
        table = _for_algorithm(table, None)
        raw = loading.apply_overlay(table, gpu=torch.cuda.is_available())
        config = plugins.with_absolute_paths(loading.parse(raw))
        section = msgspec.to_builtins(make_algorithm(config.algorithm, facts.env).config)
    except ConfigError:  # such as an algorithm that cannot learn the run's environment
        return False
    capacity = min(config.replay.capacity, own.replay.capacity)
    env = config.env
    if env.action_masks is None:
        env = msgspec.structs.replace(env, action_masks=own.env.action_masks)
    config = msgspec.structs.replace(
        config,
        env=env,
        algorithm=section,
        actor=msgspec.structs.replace(config.actor, count=config.actor.count or own.actor.count),
        replay=msgspec.structs.replace(config.replay, capacity=capacity),
    )
    return loading.dump(config) == loading.dump(own)
