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
from apex.cli.options import INTERRUPTED
from apex.errors import ApexError, ExitCode
from apex.host.escaping import printable
from apex.host.files import describe_os_error
from apex.plugins import called_exit, describe_error


class ApexGroup(click.Group):
    """Prints as one line what ends a command, and exits with its code.

    That is an `ApexError`, a file that cannot be used, Ctrl-C, or user code that calls `sys.exit`.
    """

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except ApexError as error:
            text, code = str(error), int(error.exit_code)
        except SystemExit as error:
            if not called_exit(error):
                raise
            text = f"the environment, the algorithm or a library {describe_error(error)}"
            code = int(ExitCode.CONFIGURATION)
        except KeyboardInterrupt:
            text, code = "interrupted by Ctrl-C", INTERRUPTED
        except OSError as error:
            described = describe_os_error(error)
            if described is None:
                raise
            text, code = described, int(ExitCode.CONFIGURATION)
        click.echo(f"apex: {printable(text)}", err=True)
        sys.exit(code)


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
