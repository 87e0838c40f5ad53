"""`apex plot`: learning curves of runs, as a picture and as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from apex.cli.options import complete_run
from apex.host.files import check_output
from apex.runs.directory import find_run

if TYPE_CHECKING:
    from apex.evaluation.curves import Axis

PICTURES = (".png", ".svg", ".pdf")


@click.command(name="plot")
@click.argument(
    "paths",
    metavar="[RUN]...",
    nargs=-1,
    type=click.Path(path_type=Path),
    shell_complete=complete_run,
)
@click.option(
    "--x",
    type=click.Choice(["wall", "env_steps", "learner_step"]),
    default="wall",
    show_default=True,
    help="Quantity of the x-axis.",
)
@click.option(
    "--metric",
    default="mean_return",
    show_default=True,
    help="Quantity of the y-axis: mean_return, min_return, max_return, or a scalar of info that "
    "was measured (success, or a name in env.metrics).",
)
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Write a picture: .png, .svg or .pdf."
)
@click.option(
    "--csv",
    "csv_out",
    type=click.Path(path_type=Path),
    help="Write the evaluations as a .csv file.",
)
@click.option("--title", default="", help="Title of the picture.")
def plot(
    paths: tuple[Path, ...],
    x: Axis,
    metric: str,
    out: Path | None,
    csv_out: Path | None,
    title: str,
) -> None:
    """Plot the learning curves of runs.

    RUN is a run's directory (default: the newest run) or a CSV file written by --csv. Runs that
    differ only in [run] (seed, limits) become one curve: their mean and range.
    """
    from apex.evaluation import curves

    if out is None and csv_out is None:
        raise click.UsageError("expected -o OUT.png, --csv OUT.csv, or both")
    for path, endings in ((out, PICTURES), (csv_out, (".csv",))):
        if path is not None:
            check_output(path, endings)
    groups = curves.gather(paths or [find_run(None).path])
    if csv_out is not None:
        curves.write_csv(csv_out, [curve for group in groups.values() for curve in group])
        click.echo(f"wrote {csv_out}")
    if out is not None:
        curves.draw(groups, x, title, out, metric)
        click.echo(f"wrote {out}")
