"""Options that several commands have, and what a shell completes in them.

A completion runs at each press of Tab: what it needs beyond the names in a directory is imported
inside of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from apex.errors import ApexError
from apex.runs.directory import RunDirectory, all_runs, find_run, runs_root


def default_preset() -> str:
    """Pong's preset here: the paper's network where a GPU learns, else what learns soonest."""
    from apex.host.hardware import has_gpu

    return "pong" if has_gpu() else "pong-fast"


def complete_preset(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of presets."""
    from apex.config.loading import preset_names

    return _beginning(incomplete, preset_names())


def complete_run(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Directories of runs, newest first; any other directory once none begins like that."""
    paths = [str(runs_root() / run.path.name) for run in all_runs()]
    return _beginning(incomplete, paths) or [CompletionItem(incomplete, type="dir")]


def complete_log(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of the daemons that have written a log, in the run that `--run` names or the newest."""
    run = _run_of(context)
    return _beginning(incomplete, sorted(p.stem for p in run.logs.glob("*.log")) if run else ())


def complete_actor(
    context: click.Context, parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Names of actors, in the run that `--run` names or the newest."""
    run = _run_of(context)
    there = sorted(p.stem for p in run.daemons.glob("actor_*.lock")) if run else ()
    return _beginning(incomplete, there)


def _run_of(context: click.Context) -> RunDirectory | None:
    try:
        return find_run(context.params.get("run_path"))
    except ApexError:
        return None


def _beginning(incomplete: str, names: Iterable[str]) -> list[CompletionItem]:
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
    """`--env` and `--algorithm`."""
    algorithm = click.option(
        "--algorithm", metavar="NAME", help="algorithm.name, or my_algorithm.py:Class."
    )
    env = click.option("--env", metavar="ID", help="env.id: a gymnasium id, or my_env.py:Name.")
    return env(algorithm(command))


def own_code_settings(env: str | None, algorithm: str | None) -> list[str]:
    """What `--env` and `--algorithm` say, as `--set` would."""
    given = {"env.id": env, "algorithm.name": algorithm}
    return [f"{key}={quoted(value)}" for key, value in given.items() if value is not None]


def quoted(text: str) -> str:
    """As TOML writes a string, which JSON's strings are too."""
    return json.dumps(text, ensure_ascii=False)


set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Override one setting of the configuration; may be repeated.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
