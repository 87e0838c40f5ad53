"""`run()`: train from a script or notebook."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from apex.config.sections import Config
from apex.errors import RunError, UsageError
from apex.launch import engine
from apex.launch.extension_bytes import packed
from apex.plugins import FACTORY, NONE, Extensions
from apex.runs.directory import RunDirectory

if TYPE_CHECKING:  # every child imports this module: the replay server must not import torch
    from apex.algos.base import Algorithm
    from apex.envs.registry import EnvFactory


def run(
    config: Config | str | Path,
    *,
    make_env: EnvFactory | None = None,
    algorithm: type[Algorithm] | None = None,
    settings: Sequence[str] = (),
    path: Path | str | None = None,
) -> RunDirectory:
    """Start a suite in the background from a script or a notebook.

    Args:
        config: a configuration, the name of a preset, or the path of a file (`Path` or `….toml`).
        make_env: makes one environment, instead of `env.id`.
        algorithm: an `Algorithm` of your own, instead of `algorithm.name`.
        settings: like `--set`, over a preset or a file.
        path: the run's directory; default: a new one under `runs/`.

    Returns:
        The run; `apex.launch.engine.stop(run)` ends it, and so does `apex stop --run DIR`.

    Raises:
        ApexError: the configuration or the environment cannot be used.
    """
    from apex.launch.prepare import file_config, new_run_path, prepare_run, preset_config

    if isinstance(config, Config):
        if settings:
            raise UsageError(
                "settings go with a preset or a file; change the Config itself instead"
            )
        name = str(config.algorithm.get("name", "run"))
    elif isinstance(config, Path) or config.endswith(".toml"):
        name, config = Path(config).stem, file_config(Path(config), settings)
    else:
        name, config = config, preset_config(config, settings, algorithm)
    extensions = Extensions(make_env, algorithm)
    config = _named(config, extensions)
    target = Path(path) if path is not None else new_run_path(name)
    directory = prepare_run(target, config, extensions=extensions)
    _start(directory, packed(extensions) if extensions != NONE else b"")
    return directory


def _named(config: Config, extensions: Extensions) -> Config:
    """A configuration that says which of its parts a script brought: those are not kept."""
    if extensions.make_env is not None:
        make_env = extensions.make_env
        env_id = FACTORY + getattr(make_env, "__name__", type(make_env).__name__)
        env = msgspec.structs.replace(config.env, id=env_id)
        config = msgspec.structs.replace(config, env=env)
    if extensions.algorithm is not None:
        section = {**config.algorithm, "name": FACTORY + extensions.algorithm.__name__}
        config = msgspec.structs.replace(config, algorithm=section)
    return config


def _start(directory: RunDirectory, payload: bytes) -> None:
    """Start a launcher in a session of its own, with the extensions through its pipe."""
    with (directory.logs / "engine.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "apex.launch", "--run", str(directory.path), "--payload"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    assert process.stdin is not None
    try:
        process.stdin.write(payload)
        process.stdin.close()
    except BrokenPipeError:
        pass
    if engine.await_daemons(directory, process) is None:
        raise RunError(f"the launcher did not start; see {directory.logs / 'engine.log'}")
