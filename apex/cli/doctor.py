"""`apex doctor`: what this machine, this installation and the runs lack, and the remedies."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from apex.cli.options import default_preset, json_option, preset_option, run_option
from apex.errors import ExitCode, UsageError
from apex.host.escaping import printable
from apex.runs.directory import find_run

if TYPE_CHECKING:
    from apex.doctor.findings import Finding

COLOURS = {"ok": "green", "note": "cyan", "warning": "yellow", "problem": "red"}
CHECK_WIDTH = 14
STATE_WIDTH = max(map(len, COLOURS))


@click.command()
@preset_option
@run_option
@json_option
def doctor(preset: str | None, run_path: Path | None, as_json: bool) -> None:
    """Look for what would keep a run from working, and say what to do about it.

    Looks at this machine and this installation, with a preset in mind (--preset; by default what
    `make run-pong` runs) or a run (--run), and at all runs. Exit status: 0, or 3 when there is a
    problem.
    """
    from apex.config.loading import preset_text

    if preset is not None and run_path is not None:
        raise UsageError("expected --preset NAME or --run DIR, not both")
    name = preset or default_preset()
    preset_text(name)
    run = find_run(run_path) if run_path is not None else None
    from apex.doctor.examination import examine

    findings = list(examine(name if run is None else run))
    if as_json:
        import msgspec

        click.echo(json.dumps(msgspec.to_builtins(findings)))
    else:
        click.echo(f"for {f'preset {name}' if run is None else f'run {run.path}'}")
        click.echo("\n".join(line for finding in findings for line in lines_of(finding)))
        click.echo(summary(findings))
    if any(finding.state == "problem" for finding in findings):
        sys.exit(int(ExitCode.DEGRADED))


def lines_of(finding: Finding) -> list[str]:
    """A finding for a person: what was found; below it, unless all is well, the rest."""
    state = click.style(f"{finding.state:<{STATE_WIDTH}}", fg=COLOURS[finding.state])
    margin = " " * (STATE_WIDTH + CHECK_WIDTH + 4)
    aside = f" (expected: {printable(finding.expected)})" if finding.expected else ""
    well = finding.state == "ok"
    first = f"{state}  {finding.check:<{CHECK_WIDTH}}  {printable(finding.found)}"
    lines = [first + (aside if well else "")]
    if finding.expected and not well:
        lines.append(f"{margin}expected: {printable(finding.expected)}")
    if finding.remedy:
        lines.append(f"{margin}remedy:   {printable(finding.remedy)}")
    return lines


def summary(findings: Sequence[Finding]) -> str:
    """The last line: how many of each."""
    counts = {state: sum(one.state == state for one in findings) for state in COLOURS}
    return ", ".join(f"{count} {state}" for state, count in counts.items())
