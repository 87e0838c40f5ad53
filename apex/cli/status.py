"""`apex status`: print the state of each daemon of a run."""

from __future__ import annotations

import sys
from typing import Any

import click

from apex.cli.json_output import echo_json, json_option
from apex.cli.options import run_option
from apex.cli.status_text import describe
from apex.daemons.status.gathering import gather
from apex.errors import ExitCode
from apex.runs.directory import find_run

EXIT_CODES = {"healthy": ExitCode.CLEAN, "degraded": ExitCode.DEGRADED, "down": ExitCode.DOWN}


@click.command()
@run_option
@json_option
def status(run_path: Any, as_json: bool) -> None:
    """Show the state of each daemon. Exit status: 0 healthy, 3 degraded, 4 down."""
    gathered = gather(find_run(run_path))
    if as_json:
        echo_json(gathered.as_map())
    else:
        click.echo(describe(gathered))
    sys.exit(int(EXIT_CODES[gathered.run.health]))
