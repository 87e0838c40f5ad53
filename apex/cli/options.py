"""Options that several commands share, and their shell completions.

A completion runs at each press of Tab, so it imports what is slow to import only where needed.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from apex.errors import ApexError
from apex.runs.directory import RunDirectory, all_runs, find_run, runs_root

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a command that Ctrl-C has ended."""


def default_preset() -> str:
    """The Pong preset for this machine: the paper's network on a GPU, else the fastest learner.

    torch, which takes seconds to import, is asked only where a driver reports a GPU.
    """
    from apex.host.hardware import has_gpu

    if not has_gpu():
        return "pong-fast"
    import torch

    return "pong" if torch.cuda.is_available() else "pong-fast"


def complete_preset(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of presets."""
    from apex.config.loading import preset_names

    return _matching(incomplete, preset_names())


def complete_run(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Directories of runs, newest first; if none matches, any directory."""
    paths = [str(runs_root() / run.path.name) for run in all_runs()]
    return _matching(incomplete, paths) or [CompletionItem(incomplete, type="dir")]


def complete_log(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of daemons with a log, in the run of `--run` or else the newest run."""
    run = _run_of(context)
    return _matching(incomplete, sorted(p.stem for p in run.logs.glob("*.log")) if run else ())


def complete_actor(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of actors, in the run of `--run` or else the newest run."""
    run = _run_of(context)
    names = sorted(p.stem for p in run.daemons.glob("actor_*.lock")) if run else ()
    return _matching(incomplete, names)


def _run_of(context: click.Context) -> RunDirectory | None:
    try:
        return find_run(context.params.get("run_path"))
    except ApexError:
        return None


def _matching(incomplete: str, names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]


run_option = click.option(
    "--run",
    "run_path",
    type=click.Path(path_type=Path),
    shell_complete=complete_run,
    help="The run's directory; default: the newest run.",
)

preset_option = click.option(
    "--preset", shell_complete=complete_preset, help="A preset; see `apex presets list`."
)


def own_code_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--env` and `--algorithm` to a command."""
    algorithm = click.option(
        "--algorithm", metavar="NAME", help="algorithm.name, or my_algorithm.py:Class."
    )
    env = click.option("--env", metavar="ID", help="env.id: a gymnasium id, or my_env.py:Name.")
    return env(algorithm(command))


def own_code_settings(env: str | None, algorithm: str | None) -> list[str]:
    """`--env` and `--algorithm` as settings of `--set`."""
    given = {"env.id": env, "algorithm.name": algorithm}
    return [f"{key}={quoted(value)}" for key, value in given.items() if value is not None]


def quoted(text: str) -> str:
    """A TOML string literal; every JSON string is one."""
    return json.dumps(text, ensure_ascii=False)


set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Override one setting of the configuration; may be repeated.",
)
