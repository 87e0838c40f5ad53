"""`apex logs`: print and follow the daemons' log files."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from apex.cli.options import complete_log, run_option
from apex.errors import UsageError
from apex.host.escaping import printable
from apex.runs.directory import find_run

POLL_S = 0.2


@click.command()
@click.argument("name", required=False, shell_complete=complete_log)
@run_option
@click.option("-f", "--follow", is_flag=True, help="Keep printing new lines until Ctrl-C.")
@click.option(
    "-n", "--lines", default=20, show_default=True, help="Print this many last lines of each log."
)
def logs(name: str | None, run_path: Path | None, follow: bool, lines: int) -> None:
    """Print the log of one daemon (NAME: learner, replay, evaluator, actor_000, …), or of all."""
    run = find_run(run_path)
    names = sorted(path.stem for path in run.logs.glob("*.log"))
    if name is not None and name not in names:
        raise UsageError(f"no log of '{name}' in {run.logs}; there are: {', '.join(names)}")
    paths = [run.logs / f"{stem}.log" for stem in ([name] if name else names)]
    tails = [_Tail(path, lines) for path in paths]
    try:
        while follow:
            for tail in tails:
                tail.print_new()
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        pass
    finally:
        for tail in tails:
            tail.close()


class _Tail:
    """Prints the end of one log file and follows it through rotation; prints whole lines only."""

    def __init__(self, path: Path, lines: int) -> None:
        self._path = path
        self._file = path.open(encoding="utf-8", errors="replace")
        self._partial = ""
        present = self._whole_lines()
        for line in present[max(0, len(present) - lines) :]:
            click.echo(printable(line))

    def _whole_lines(self) -> list[str]:
        *whole, self._partial = (self._partial + self._file.read()).split("\n")
        return whole

    def print_new(self) -> None:
        """Print what was appended; reopen the file when it was rotated or cut."""
        for line in self._whole_lines():
            click.echo(printable(line))
        try:
            status = self._path.stat()
        except FileNotFoundError:
            return
        if status.st_ino != os.fstat(self._file.fileno()).st_ino:
            self._file.close()
            self._file = self._path.open(encoding="utf-8", errors="replace")
        elif status.st_size < self._file.tell():
            self._file.seek(0)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
