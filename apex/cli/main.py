"""Root of the `apex` command: its subcommands, and the handling of their errors."""

from __future__ import annotations

import sys
from typing import Any

import click

from apex import __version__
from apex.cli import (
    actors,
    doctor,
    environments,
    evaluation,
    keys,
    listings,
    logs,
    plot,
    runs,
    status,
)
from apex.errors import ApexError
from apex.host.escaping import printable


class ApexGroup(click.Group):
    """Prints an `ApexError` as one line and exits with its code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ApexError as error:
            click.echo(f"apex: {printable(str(error))}", err=True)
            sys.exit(int(error.exit_code))


@click.group(cls=ApexGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="apex")
def main() -> None:
    """Distributed reinforcement learning with daemons: start, watch, extend and stop runs.

    Commands act on the newest run under ./runs (or $APEX_RUNS) unless --run names another.
    """


for command in (
    runs.run,
    runs.stop,
    runs.snapshot,
    runs.watch,
    status.status,
    doctor.doctor,
    logs.logs,
    actors.actor,
    evaluation.evaluate,
    evaluation.enjoy,
    plot.plot,
    listings.presets,
    environments.envs,
    listings.config,
    listings.runs,
    keys.keys,
):
    main.add_command(command)
