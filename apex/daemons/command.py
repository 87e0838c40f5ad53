"""The command line of a daemon's executable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from apex.daemons.service import Service, serve
from apex.errors import UsageError
from apex.runs.directory import RunDirectory


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name the run to a command."""
    path = click.Path(path_type=Path)
    for option in (
        click.option("--run", type=path, help="The run's directory."),
        click.option(
            "--config",
            type=path,
            help="config.toml beside a schema.json.",
        ),
        click.option(
            "--endpoints",
            type=path,
            help="Instead of the run's endpoints.toml.",
        ),
    ):
        command = option(command)
    return command


def run_from_options(run: Path | None, config: Path | None, endpoints: Path | None) -> RunDirectory:
    """Return the run that the options of `run_options` name.

    Raises:
        UsageError: neither --run nor --config was given.
    """
    if run is None and config is None:
        raise UsageError("expected --run DIR, or --config FILE in a prepared run's directory")
    directory = run if run is not None else config.parent  # type: ignore[union-attr]
    return RunDirectory(directory, config=config, endpoints=endpoints)


def daemon_command(name: str, body: Callable[[Service], None], help_text: str) -> click.Command:
    """Create the click command of a daemon that a suite has once."""

    @click.command(name=name, help=help_text)
    @run_options
    def command(run: Path | None, config: Path | None, endpoints: Path | None) -> None:
        try:
            directory = run_from_options(run, config, endpoints)
        except UsageError as error:
            raise click.UsageError(str(error)) from None
        serve(directory, name, body)

    return command
