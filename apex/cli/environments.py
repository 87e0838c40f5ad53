"""`apex envs`: list the sets of ready environments, and report on one environment."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from apex.cli.json_output import echo_json, json_option
from apex.cli.options import preset_option, set_option
from apex.errors import UsageError
from apex.host.escaping import printable

if TYPE_CHECKING:  # importing them imports gymnasium and torch
    from apex.envs.sets import EnvironmentSet
    from apex.launch.environment_report import EnvironmentReport, Fit


@click.group()
def envs() -> None:
    """List environments that are ready to use, or show what one is like."""


@envs.command(name="list")
@click.argument("name", metavar="[SET]", required=False)
@json_option
def list_environments(name: str | None, as_json: bool) -> None:
    """List the sets, or all environments of SET."""
    chosen = _chosen(name)
    if as_json:
        echo_json([_row(one) for one in chosen])
    elif name is None:
        for one in chosen:
            click.echo(_paragraph(one))
    else:
        (one,) = chosen
        if not one.installed:
            click.echo(f"not installed, so only examples; install it: {one.remedy}", err=True)
        for env_id in one.ids():
            click.echo(env_id)


def _chosen(name: str | None) -> list[EnvironmentSet]:
    """The set of that name; without a name, all of them. Raises `UsageError`."""
    from apex.envs import sets

    found = [one for one in sets.SETS if name in (None, one.name)]
    if not found:
        raise UsageError(
            f"unknown set '{name}'; expected one of: {', '.join(one.name for one in sets.SETS)}"
        )
    return found


def _row(one: EnvironmentSet) -> dict[str, Any]:
    return {
        "set": one.name,
        "about": one.about,
        "extra": one.extra,
        "installed": one.installed,
        "install": one.remedy,
        "presets": one.presets(),
        "ids": one.ids(),
    }


def _paragraph(one: EnvironmentSet) -> str:
    """Three lines about a set."""
    presets = ", ".join(one.presets()) or "none"
    if one.installed:
        state = f"installed, {len(one.ids())} environments"
    else:
        state = f"not installed: {one.remedy}"
    return (
        f"{one.name:<11} {one.about}\n"
        f"{'':<12}{state}; such as {', '.join(one.examples[:3])}\n"
        f"{'':<12}presets: {presets}"
    )


@envs.command(name="show")
@click.argument("env_id", metavar="ID")
@preset_option
@set_option
@json_option
def show_environment(
    env_id: str, preset: str | None, settings: tuple[str, ...], as_json: bool
) -> None:
    """Make environment ID once; show what is seen and done in it, and which algorithms fit."""
    from apex.host.orphans import ending_children
    from apex.launch.environment_report import report

    with _without_warnings(), ending_children(Path.cwd()):
        found = report(env_id, settings, preset)
    if as_json:
        echo_json(_as_map(found))
    else:
        click.echo("\n".join(_lines(found)))
        best = next((fit for fit in found.fits if not fit.refusal), None)
        if best is not None:
            click.echo(f"start it: {_command(env_id, best, settings)}")


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Hide what a run would warn about, once for each algorithm; the report has it."""
    log = logging.getLogger("apex")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _as_map(found: EnvironmentReport) -> dict[str, Any]:
    fits = [
        {**fit._asdict(), "fits": not fit.refusal, "table_bytes": fit.table_bytes}
        for fit in found.fits
    ]
    return {
        **found._asdict(),
        "observation": [one._asdict() for one in found.observation],
        "fits": fits,
    }


def _lines(found: EnvironmentReport) -> Iterator[str]:
    """The report as lines of text."""
    yield found.env_id + (f", of the set {found.set_name}" if found.set_name else "")
    yield "observation"
    for one in found.observation:
        stack = f", {one.stack} stacked" if one.stack > 1 else ""
        shape = "x".join(map(str, one.shape)) or "one number"
        yield f"  {one.name:<16} {one.kind:<9} {shape} {one.dtype}{stack}"
    yield "actions"
    yield f"  {found.actions}, {'with a mask of those allowed' if found.masked else 'no mask'}"
    yield "episode"
    limit = "no limit of gymnasium's" if found.step_limit is None else f"{found.step_limit:,} steps"
    yield f"  at most: {limit}"
    yield "algorithms"
    for fit in found.fits:
        yield f"  {fit.algorithm:<9} {_verdict(fit)}"


def _verdict(fit: Fit) -> str:
    from apex.doctor.findings import format_bytes

    if fit.refusal:
        return f"does not fit: {printable(fit.refusal)}"
    source = f"preset {fit.preset}" if fit.preset else "the defaults"
    return (
        f"fits with {source}: about {fit.item_bytes:,.0f} bytes an item, "
        f"{format_bytes(fit.table_bytes)} for {fit.capacity:,} items"
    )


def _command(env_id: str, fit: Fit, settings: Sequence[str]) -> str:
    """The command that starts a run of an algorithm that fits."""
    preset = ["--preset", fit.preset] if fit.preset else []
    more = [part for setting in settings for part in ("--set", setting)]
    named = ["--algorithm", fit.algorithm, "--env", env_id]
    return shlex.join(["apex", "run", *preset, *named, *more])
