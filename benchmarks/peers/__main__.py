"""Compare apex with all peers, or with one by `--only NAME`."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from benchmarks.options import ResultsFolder
from benchmarks.peers import scenarios
from benchmarks.provenance import provenance
from benchmarks.run.figures import line, save
from benchmarks.run.plot import draw

PINS = Path(__file__).with_name("environments")


def pins(environment: str) -> dict[str, str]:
    """Versions of all packages in a peer's environment."""
    lines = (PINS / f"{environment}.txt").read_text().splitlines()
    return dict(line.split("==", 1) for line in lines)  # type: ignore[arg-type]


def measured(name: str) -> dict[str, Any]:
    """Output of a scenario."""
    with tempfile.TemporaryDirectory(prefix="apex-peers-") as folder:
        return line(name, scenarios.load(name)(Path(folder)))


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--only", type=click.Choice(list(scenarios.ENVIRONMENTS)), help="One scenario only.")
@click.option("--out", type=ResultsFolder(), help="Results folder.")
def main(only: str | None, out: Path | None) -> None:
    """See `--help`."""
    where_from, failed = provenance(), []  # before the first result changes the checkout
    for name in [only] if only else scenarios.ENVIRONMENTS:
        began = time.monotonic()
        try:
            figures = measured(name)
        except Exception as error:  # the other peers can still be measured
            failed.append(name)
            click.echo(f"{name}: not measured: {error}", err=True)
            continue
        click.echo(json.dumps(figures))
        if out is not None:
            peers = pins(scenarios.ENVIRONMENTS[name])
            took_s = round(time.monotonic() - began, 1)
            save(out / f"peer-{name}.json", figures, took_s=took_s, **where_from, peers=peers)
    if out is not None and not only:
        title = f"make bench-peers at {where_from['commit']}: {where_from['machine']}"
        shown = [out / f"peer-{name}.json" for name in scenarios.ENVIRONMENTS if name not in failed]
        draw(shown, title, out / "peers.png")
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
