"""Train a suite for an hour and check that no daemon's memory or open files grow.

    python -m tests.tools.soak --minutes 60 --out benchmarks/reliability

For two minutes in the first third the learner is stopped (SIGSTOP) and the other daemons wait; they
must not grow meanwhile. Memory and open files count from a third of the time to its end.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import click
import psutil
from matplotlib.figure import Figure

from apex.daemons.status.gathering import gather
from apex.launch import engine
from apex.runs.directory import RunDirectory
from benchmarks.options import ResultsFolder
from benchmarks.provenance import provenance

APEX = str(Path(sys.executable).with_name("apex"))
SAMPLE_S = 5.0
STOP_AT, MOST_STOPPED_S = 1 / 6, 120.0
"""Start, as a share of the time, and length of the learner's stop (a tenth of a short soak)."""
MOST_GROWTH = 0.01
MOST_GROWTH_STOPPED = 0.02


class Sample(NamedTuple):
    """One measurement of one daemon."""

    seconds: float
    daemon: str
    pid: int
    rss_mb: float
    open_files: int


def stop_times(seconds: float) -> tuple[float, float]:
    """Start and end of the learner's stop, in seconds."""
    return seconds * STOP_AT, seconds * STOP_AT + min(MOST_STOPPED_S, seconds / 10)


def measure(seconds: float, daemon: str, pid: int) -> Sample:
    """Measure memory and open files of a process."""
    process = psutil.Process(pid)
    rss = process.memory_info().rss / 1e6
    return Sample(round(seconds, 1), daemon, pid, round(rss, 2), process.num_fds())


def soak(run: RunDirectory, seconds: float) -> list[Sample]:
    """Measure all daemons for a time; the learner is stopped for a part of it."""
    samples: list[Sample] = []
    began = time.monotonic()
    stop_at, go_on_at = stop_times(seconds)
    stopped: int | None = None
    try:
        while (now := time.monotonic() - began) < seconds:
            if stopped is None and stop_at <= now < go_on_at:
                stopped = run.pid("learner")
                assert stopped is not None, "the learner is down"
                os.kill(stopped, signal.SIGSTOP)
            elif stopped and now >= go_on_at:
                os.kill(stopped, signal.SIGCONT)
                stopped = 0
            samples += [measure(now, daemon, pid) for daemon, pid in run.living().items()]
            time.sleep(SAMPLE_S)
    finally:
        if stopped:
            os.kill(stopped, signal.SIGCONT)
    return samples


class Row(NamedTuple):
    """Figures of one daemon from a third of the time to its end."""

    daemon: str
    starts: int
    first_mb: float
    last_mb: float
    growth: float
    growth_stopped: float
    """Growth while the learner was stopped."""
    open_files: tuple[int, int]


def summary(samples: list[Sample], seconds: float) -> list[Row]:
    """Median memory of the first and the last thirtieth, and the range of open files."""
    by_daemon: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_daemon[sample.daemon].append(sample)
    rows = []
    for daemon, all_of_it in sorted(by_daemon.items()):
        late = [s for s in all_of_it if s.seconds >= seconds / 3]
        window = seconds / 30
        first = statistics.median(s.rss_mb for s in late if s.seconds < seconds / 3 + window)
        last = statistics.median(s.rss_mb for s in late if s.seconds >= seconds - window)
        files = [s.open_files for s in late]
        starts = len({s.pid for s in all_of_it})
        stopped = _growth_stopped(all_of_it, *stop_times(seconds))
        growth = last / first - 1
        rows.append(Row(daemon, starts, first, last, growth, stopped, (min(files), max(files))))
    return rows


def _growth_stopped(samples: list[Sample], begin: float, end: float) -> float:
    """Relative growth of memory from the start of the learner's stop to its end."""
    during = [s.rss_mb for s in samples if begin + SAMPLE_S <= s.seconds < end]
    return during[-1] / during[0] - 1 if during else float("nan")


def table(rows: list[Row]) -> str:
    """The figures as a Markdown table."""
    lines = ["| daemon | starts | RSS at a third | at the end | growth | while the learner stood "
             "still | open files |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    lines += [
        f"| {row.daemon} | {row.starts} | {row.first_mb:.1f} MB | {row.last_mb:.1f} MB "
        f"| {row.growth:+.2%} | {row.growth_stopped:+.2%} | {row.open_files[0]} "
        f"to {row.open_files[1]} |"
        for row in rows
    ]
    return "\n".join(lines)


def draw(samples: list[Sample], path: Path) -> None:
    """Draw each daemon's memory over time."""
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot(xlabel="minutes", ylabel="resident memory, MB")
    for daemon in sorted({sample.daemon for sample in samples}):
        mine = [sample for sample in samples if sample.daemon == daemon]
        axes.plot([s.seconds / 60 for s in mine], [s.rss_mb for s in mine], label=daemon)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path)


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--minutes", type=click.FloatRange(1.0), default=60.0, show_default=True)
@click.option("--preset", default="pong-fast", show_default=True)
@click.option("--out", type=ResultsFolder(), help="For the results.")
def main(minutes: float, preset: str, out: Path | None) -> None:
    """See `--help`."""
    about = provenance()
    with tempfile.TemporaryDirectory(prefix="apex-soak-") as folder:
        run = RunDirectory(Path(folder) / "run")
        command = [APEX, "run", "--preset", preset, "--detach", "--run", str(run.path)]
        subprocess.run(command, check=True, timeout=120)
        try:
            samples = soak(run, 60.0 * minutes)
            status = gather(run).as_map()
        finally:
            engine.stop(run, timeout_s=60.0)
    del status["run"]["path"]  # a temporary one
    rows = summary(samples, 60.0 * minutes)
    click.echo(table(rows))
    click.echo(f"learner step {status['learner']['learner_step']:,}, {status['run']['health']}")
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "soak.csv").open("w", newline="") as file:
            csv.writer(file).writerows([Sample._fields, *samples])
        record = {**about, "minutes": minutes, "preset": preset,
                  "rows": [row._asdict() for row in rows], "status": status}  # fmt: skip
        draw(samples, out / "soak.png")
        (out / "soak.json").write_text(json.dumps(record, indent=1) + "\n")
    flat = all(row.open_files[1] - row.open_files[0] <= 2 for row in rows)
    grows = any(
        row.growth > MOST_GROWTH or row.growth_stopped > MOST_GROWTH_STOPPED for row in rows
    )
    if not flat or grows or any(row.starts > 1 for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
