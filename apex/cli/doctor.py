"""`apex doctor`: check this machine, the installation and the runs, and suggest remedies."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from apex.cli.json_output import echo_json, json_option
from apex.cli.options import default_preset, preset_option, run_option
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
    """Find what would keep a run from working, and say how to fix it.

    Checks whether this machine and this installation can run a preset (--preset; default: the one
    that `make run-pong` runs) or a run (--run), then checks all runs. Exit status: 0, or 3 if
    there is a problem.
    """
    from apex.config.loading import preset_text

    if preset is not None and run_path is not None:
        raise UsageError("expected --preset NAME or --run DIR, not both")
    name = preset or default_preset()
    preset_text(name)
    run = find_run(run_path) if run_path is not None else None
    from apex.doctor.examination import examine
    from apex.host.orphans import ending_children

    with ending_children(Path.cwd()):
        findings = list(examine(name if run is None else run))
    if as_json:
        import msgspec

        echo_json(msgspec.to_builtins(findings))
    else:
        click.echo(f"findings for {f'preset {name}' if run is None else f'run {run.path}'}")
        click.echo("\n".join(line for finding in findings for line in lines_of(finding)))
        click.echo(summary(findings))
    if any(finding.state == "problem" for finding in findings):
        sys.exit(int(ExitCode.DEGRADED))


def lines_of(finding: Finding) -> list[str]:
    """Format a finding: what was found; unless it is ok, what was expected and the remedy below."""
    state = click.style(f"{finding.state:<{STATE_WIDTH}}", fg=COLOURS[finding.state])
    margin = " " * (STATE_WIDTH + CHECK_WIDTH + 4)
    aside = f" (expected: {printable(finding.expected)})" if finding.expected else ""
    is_ok = finding.state == "ok"
    first = f"{state}  {finding.check:<{CHECK_WIDTH}}  {printable(finding.found)}"
    lines = [first + (aside if is_ok else "")]
    if finding.expected and not is_ok:
        lines.append(f"{margin}expected: {printable(finding.expected)}")
    if finding.remedy:
        lines.append(f"{margin}remedy:   {printable(finding.remedy)}")
    return lines


def summary(findings: Sequence[Finding]) -> str:
    """The last line: how many findings there are of each state."""
    counts = {state: sum(one.state == state for one in findings) for state in COLOURS}
    return ", ".join(f"{count} {state}" for state, count in counts.items())
