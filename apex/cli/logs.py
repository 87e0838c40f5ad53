"""`apex logs`: shows and follows the daemons' log files."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import IO

import click

from apex.cli.options import run_option
from apex.errors import UsageError
from apex.run_directory import find_run

POLL_S = 0.2


@click.command()
@click.argument("name", required=False)
@run_option
@click.option("-f", "--follow", is_flag=True, help="Go on printing until Ctrl-C.")
@click.option("-n", "--lines", default=20, show_default=True, help="Last lines of each file.")
def logs(name: str | None, run_path: Path | None, follow: bool, lines: int) -> None:
    """Print the log of one daemon (NAME: learner, replay, evaluator, actor_000, …), or of all."""
    run = find_run(run_path)
    there = sorted(path.stem for path in run.logs.glob("*.log"))
    if name is not None and name not in there:
        raise UsageError(f"no log of '{name}' in {run.logs}; there are: {', '.join(there)}")
    paths = [run.logs / f"{stem}.log" for stem in ([name] if name else there)]
    files = [_print_tail(path, lines) for path in paths]
    try:
        while follow:
            for index, path in enumerate(paths):
                files[index] = _print_new(files[index], path)
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        pass
    finally:
        for file in files:
            file.close()


def _print_tail(path: Path, lines: int) -> IO[str]:
    file = path.open(encoding="utf-8", errors="replace")
    for line in file.read().splitlines()[-lines:]:
        click.echo(_printable(line))
    return file


def _print_new(file: IO[str], path: Path) -> IO[str]:
    """Print what was appended; reopen the file when it was rotated or cut."""
    for line in file.read().splitlines():
        click.echo(_printable(line))
    try:
        status = path.stat()
    except FileNotFoundError:
        return file
    if status.st_ino != os.fstat(file.fileno()).st_ino:
        file.close()
        return path.open(encoding="utf-8", errors="replace")
    if status.st_size < file.tell():
        file.seek(0)
    return file


def _printable(line: str) -> str:
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "?", line)
