"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path

import click

run_option = click.option(
    "--run",
    "run_path",
    type=click.Path(path_type=Path),
    help="The run's directory; default: the newest run.",
)

set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="Override one setting of the configuration; may be repeated.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one line of JSON.")
