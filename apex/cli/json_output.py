"""Output of `--json`: one line of JSON on standard output, and nothing else.

The user's environments and algorithms print what they like, also from C. With `--json` all of that
goes to standard error, until the process ends.
"""

from __future__ import annotations

import io
import json
import os
import sys
from typing import Any, TextIO

import click

STDOUT, STDERR = 1, 2
CLAIMED = "apex.cli.json_output"
"""Key of the claimed output in the context of a command."""


def _claim(context: click.Context, option: click.Parameter, as_json: bool) -> bool:
    """Callback of `--json`: keep standard output for `echo_json`."""
    if as_json and CLAIMED not in context.meta:
        context.meta[CLAIMED] = claim_stdout()
    return as_json


json_option = click.option(
    "--json", "as_json", is_flag=True, callback=_claim, help="Print one line of JSON."
)


def echo_json(value: Any) -> None:
    """Print a value as one line of JSON; for commands with `json_option`."""
    out: TextIO = click.get_current_context().meta[CLAIMED]
    click.echo(json.dumps(value), file=out)
    out.flush()


def claim_stdout() -> TextIO:
    """Return standard output, and send what else is printed to standard error from now on.

    The descriptor is redirected too, if `sys.stdout` writes to it, so that prints of C libraries
    and of child processes follow. It stays so, as buffers of C are written when the process ends.
    """
    claimed = sys.stdout
    if _descriptor(claimed) == STDOUT:
        claimed.flush()
        claimed = open(os.dup(STDOUT), "w", encoding="utf-8")  # noqa: SIM115 (lives on)
        os.dup2(STDERR, STDOUT)
    sys.stdout = sys.stderr
    return claimed


def _descriptor(stream: TextIO) -> int | None:
    """File descriptor that a stream writes to; None if it has none."""
    try:
        return stream.fileno()
    except (AttributeError, io.UnsupportedOperation):
        return None
