"""`run()`: start a run from a script or notebook."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from apex.config.sections import Config
from apex.errors import RunError, UsageError
from apex.launch import engine, open_files
from apex.launch.pickled_extensions import pickle_extensions
from apex.launch.run_handle import Run
from apex.plugins import NONE, Extensions, short, with_extensions
from apex.runs.directory import RunDirectory

if TYPE_CHECKING:  # daemons import this module, and the replay server must not import torch
    from apex.algos.base import Algorithm
    from apex.envs.registry import EnvFactory


def run(
    config: Config | str | Path,
    *,
    make_env: EnvFactory | None = None,
    algorithm: type[Algorithm] | None = None,
    settings: Sequence[str] = (),
    path: Path | str | None = None,
) -> Run:
    """Start a run in the background from a script or a notebook.

    Args:
        config: a configuration, the name of a preset, or the path of a file (`Path` or `….toml`).
        make_env: makes one environment; replaces `env.id`.
        algorithm: your own `Algorithm` class; replaces `algorithm.name`.
        settings: settings as of `--set`, which override a preset or a file.
        path: the run's directory; default: a new one under `runs/`.

    Returns:
        The run: `run.wait()`, `run.status()`, `run.metrics()`, `run.stop()`, `run.path`; the
        commands (`apex watch`, `apex stop --run DIR`, …) work on it too.

    Raises:
        ApexError: the configuration or the environment cannot be used.
    """
    from apex.config.loading import read_table
    from apex.launch.prepare import check_script_config, new_run, prepare_run

    extensions, target = Extensions(make_env, algorithm), Path(path) if path is not None else None
    if isinstance(config, Config):
        if settings:
            raise UsageError(
                "expected settings only with a preset or a file; change the Config itself instead"
            )
        name = short(str(config.algorithm.get("name", "run"))).rpartition(":")[2]
        own = check_script_config(with_extensions(config, extensions))
        directory = prepare_run(target, own, extensions=extensions, name=name)
    elif isinstance(config, Path) or config.endswith(".toml"):
        table = read_table(file=Path(config), settings=settings)
        directory = new_run(table, target, extensions=extensions)
    else:
        directory = new_run(read_table(config, settings=settings), target, extensions=extensions)
    payload = pickle_extensions(extensions) if extensions != NONE else b""
    return Run(directory.path, _start(directory, payload))


def _start(directory: RunDirectory, payload: bytes) -> subprocess.Popen[bytes]:
    """Start a launcher in a new session and send it the extensions through a pipe."""
    open_files.check(open_files.files_needed(directory.config(), "local"))
    with (directory.logs / "engine.log").open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "apex.launch", "--run", str(directory.path), "--payload"],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin:
        process.stdin.write(payload)
    with engine.stopped_if_interrupted(directory, process):
        record = engine.await_daemons(directory, process)
    if record is None:
        raise RunError(f"the launcher did not start; see {directory.logs / 'engine.log'}")
    return process
