"""Run all scenarios, or one with `--only NAME`."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path

import click
import torch

from benchmarks.options import ResultsFolder
from benchmarks.provenance import provenance
from benchmarks.run import plot, scenarios
from benchmarks.run.figures import line, save

EVERYTHING = scenarios.NAMES + scenarios.ON_DEMAND
ONE = EVERYTHING + scenarios.SHORT


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--only", type=click.Choice(ONE), help="Run this scenario only.")
@click.option("--out", type=ResultsFolder(), help="Results folder.")
def main(only: str | None, out: Path | None) -> None:
    """See `--help`."""
    where_from = provenance()  # before the first result changes the checkout
    names = EVERYTHING if torch.cuda.is_available() else scenarios.NAMES
    for name in [only] if only else names:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="apex-bench-") as folder:
            measured = line(name, scenarios.load(name)(Path(folder)))
        click.echo(json.dumps(measured))
        if out is not None:
            took_s = round(time.monotonic() - began, 1)
            save(out / f"{name}.json", measured, took_s=took_s, **where_from)
    if out is not None and not only:
        title = f"make bench at {where_from['commit']}: {where_from['machine']}"
        plot.draw([out / f"{name}.json" for name in names], title, out / "bars.png")


if __name__ == "__main__":
    main()
