"""`apex presets`, `apex config`, `apex runs`: list presets and runs, check a configuration."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path
from shlex import quote

import click

from apex.cli.json_output import claim_stdout, echo_json, json_option
from apex.cli.options import (
    complete_preset,
    complete_run,
    own_code_options,
    own_code_settings,
    set_option,
)
from apex.config import loading
from apex.errors import ApexError, RunError
from apex.host.files import remove
from apex.host.paths import socket_directory
from apex.runs.directory import RunDirectory, all_runs, runs_root


@click.group()
def presets() -> None:
    """List the presets that ship with apex, or show one."""


@presets.command(name="list")
def list_presets() -> None:
    """List the presets, one per line, each with its description."""
    for name in loading.preset_names():
        first = loading.preset_text(name).splitlines()[0].lstrip("# ")
        click.echo(f"{name:<12} {first}")


@presets.command(name="show")
@click.argument("name", shell_complete=complete_preset)
@click.option("--resolved", is_flag=True, help="Print all keys, as this machine would run it.")
def show_preset(name: str, resolved: bool) -> None:
    """Print a preset."""
    if not resolved:
        click.echo(loading.preset_text(name), nl=False)
        return
    from apex.host.orphans import ending_children
    from apex.launch.preflight import try_config
    from apex.launch.prepare import configure

    out = claim_stdout()  # making the environment may print
    with ending_children(Path.cwd()):
        trial = try_config(configure(loading.read_table(name)))
    click.echo(loading.dump(trial.config), nl=False, file=out)


@click.group()
def config() -> None:
    """Check a configuration."""


@config.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@click.option("--preset", shell_complete=complete_preset, help="Check a preset, not a file.")
@own_code_options
@set_option
def check(
    file: Path | None,
    preset: str | None,
    env: str | None,
    algorithm: str | None,
    settings: tuple[str, ...],
) -> None:
    """Check FILE, a preset or the defaults. Tries the environment and the algorithm."""
    from apex.host.orphans import ending_children
    from apex.launch.preflight import try_config
    from apex.launch.prepare import configure

    table = loading.read_table(preset, file, [*settings, *own_code_settings(env, algorithm)])
    with ending_children(Path.cwd()):
        trial = try_config(configure(table))
    spec = trial.spec
    click.echo(
        f"good: {trial.config.algorithm['name']} on {spec.env_id}, observations "
        f"{spec.observations_text}, {spec.actions_text}, schema "
        f"{trial.schema.hash}"
    )


@click.group()
def runs() -> None:
    """List or remove runs."""


@runs.command(name="list")
@json_option
def list_runs(as_json: bool) -> None:
    """List all runs, newest first."""
    rows = [_row(run) for run in all_runs()]
    if as_json:
        echo_json(rows)
        return
    if not rows:
        click.echo(f"no run in {runs_root()}/", err=True)
    for row in rows:
        click.echo(f"{row['path']:<40} {row['env_id']:<20} {row['state']:<8} {row['created']}")


def _row(run: RunDirectory) -> dict[str, str]:
    created = datetime.fromtimestamp(run.schema_file.stat().st_mtime, timezone.utc)
    try:
        env_id = run.facts().env.env_id
    except ApexError:
        env_id = "unreadable"
    return {
        "path": str(runs_root() / run.path.name),
        "env_id": env_id,
        "state": _state(run),
        "created": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _state(run: RunDirectory) -> str:
    """`running`; `ended` if the run reached its own end; otherwise `down`."""
    if _alive(run):
        return "running"
    return "down" if run.outcome() is None else "ended"


def _alive(run: RunDirectory) -> bool:
    from apex.runs import engine_record

    return bool(run.living()) or engine_record.living_engine(run) is not None


@runs.command(name="rm")
@click.argument(
    "paths",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path),
    shell_complete=complete_run,
)
def remove_runs(paths: tuple[Path, ...]) -> None:
    """Remove runs and all their files; a run that is running is refused."""
    for path in paths:
        run = RunDirectory(path if path.exists() else runs_root() / path)
        if not run.exists:
            raise RunError(f"{path} is not a run's directory; nothing was removed from it")
        if _alive(run):
            raise RunError(
                f"{path} is running; stop it first: `apex stop --run {quote(str(path))}`"
            )
        remove(run.path)
        remove(socket_directory(run.path))
        click.echo(f"removed {path}")
