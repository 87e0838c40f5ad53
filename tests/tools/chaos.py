"""Inject faults into a running suite, again and again, and audit acknowledged inserts.

    python -m tests.tools.chaos --minutes 30 --seed 1 --out benchmarks/reliability

Prints a table of faults, and of what was acknowledged, lost and duplicated.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.options import ResultsFolder
from benchmarks.provenance import provenance
from tests.tools.faults import FAULTS, Chaos


def run_chaos(
    chaos: Chaos, minutes: float, enough: Callable[[], bool] = lambda: True, most_minutes: float = 0
) -> None:
    """Inject faults for some minutes and until there are enough, for at most `most_minutes`."""
    began = time.monotonic()

    def going_on() -> bool:
        passed = (time.monotonic() - began) / 60.0
        return passed < minutes or (passed < most_minutes and not enough())

    try:
        chaos.start()
        while going_on():
            kind = chaos.fault()
            click.echo(f"{kind}: {chaos.recoveries[kind][-1]:.1f} s", err=True)
    finally:
        chaos.end()


def table(chaos: Chaos) -> str:
    """Faults and recovery times as a Markdown table."""
    lines = ["| fault | tried | recovery, median | worst |", "|---|---|---|---|"]
    for kind, seconds in sorted(chaos.recoveries.items()):
        lines.append(
            f"| {kind} | {len(seconds)} | {statistics.median(seconds):.1f} s "
            f"| {max(seconds):.1f} s |"
        )
    last = chaos.audits[-1]
    kills = {
        kind: len(seconds)
        for kind, seconds in chaos.recoveries.items()
        if FAULTS[kind].ends and "SIGTERM" not in kind
    }
    ended = Counter(daemon for kind, count in kills.items() for daemon in FAULTS[kind].ends * count)
    lines += [
        "",
        f"{sum(kills.values())} times SIGKILL, which ended {ended.total()} processes, "
        f"{ended['replay']} of them replay servers. In items:",
        "",
        "| audits | acknowledged | not durable | sacrificed | lost | duplicated | altered "
        "| missing without a reason |",
        "|---|---|---|---|---|---|---|---|",
        f"| {len(chaos.audits)} | {last.acknowledged} | {last.volatile} "
        f"| {chaos.sacrificed} | {len(chaos.lost)} | {len(chaos.duplicated)} "
        f"| {chaos.altered} | {chaos.unexplained} |",
    ]
    return "\n".join(lines)


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--minutes", type=click.FloatRange(0.1), default=30.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--durability", type=click.Choice(["log", "sync"]), default="log", show_default=True)
@click.option("--out", type=ResultsFolder(), help="For the results.")
def main(minutes: float, seed: int, durability: str, out: Path | None) -> None:
    """See `--help`."""
    about, folder = provenance(), Path(tempfile.mkdtemp(prefix="apex-chaos-"))
    chaos = Chaos(folder, seed, durability)
    clean = False
    try:
        run_chaos(chaos, minutes)
        clean = chaos.clean
    finally:
        report(chaos, about | {"minutes": minutes, "seed": seed, "durability": durability}, out)
        click.echo("all is there" if clean else f"NOT CLEAN; the run is kept: {folder}", err=True)
    if not clean:
        sys.exit(1)
    shutil.rmtree(folder)


def report(chaos: Chaos, about: dict[str, Any], out: Path | None) -> None:
    """Print the table, and put it and all figures into a folder."""
    if not chaos.audits:
        return
    click.echo(table(chaos))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        record = {
            **about, "recoveries_s": chaos.recoveries, "lost": len(chaos.lost),
            "duplicated": len(chaos.duplicated), "altered": chaos.altered,
            "unexplained": chaos.unexplained, "audits": [vars(audit) for audit in chaos.audits],
        }  # fmt: skip
        name = f"chaos-{about['durability']}-{about['seed']}"
        (out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
        (out / f"{name}.md").write_text(table(chaos) + "\n")


if __name__ == "__main__":
    main()
