"""Actor with random actions, which measures the cost of everything but the policy."""

from __future__ import annotations

from pathlib import Path

import click

from apex.daemons.actor import daemon
from apex.daemons.catalog import ACTOR
from apex.daemons.service import serve
from apex.plugins import Extensions
from apex.runs.directory import RunDirectory
from benchmarks.run.pong import RandomDQN


@click.command()
@click.option("--run", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--index", type=int, required=True)
def main(run: Path, index: int) -> None:
    """See `--help`."""
    name, extensions = ACTOR.name(index), Extensions(algorithm=RandomDQN)
    serve(RunDirectory(run), name, lambda service: daemon.body(service, extensions))


if __name__ == "__main__":
    main()
