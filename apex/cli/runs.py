"""`apex run`, `apex watch`, `apex snapshot`, `apex stop`: start, show, save and stop a run."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING

import click

from apex.cli.json_output import echo_json, json_option
from apex.cli.options import (
    INTERRUPTED,
    complete_run,
    own_code_options,
    own_code_settings,
    preset_option,
    quoted,
    run_option,
    set_option,
)
from apex.errors import ExitCode, RunError, UsageError
from apex.runs.directory import RunDirectory, all_runs, find_run

if TYPE_CHECKING:
    from apex.runs.engine_record import EngineName


SNAPSHOT_TIMEOUT_S = 60.0
RESUME_EXCLUDES = (
    "--resume continues with the run's own configuration, endpoints and parameters; change single "
    "settings with --set, and leave out"
)
SERIAL_EXCLUDES = (
    "--serial starts a new run in this terminal, without daemons or saved replay contents; leave "
    "out --resume, --detach, --engine and --endpoints"
)


ASKED_TO_STOP = "asked to stop"


@click.command()
@run_option
@json_option
def snapshot(run_path: Path | None, as_json: bool) -> None:
    """Save learner and replay to disk now, for --resume."""
    from apex.daemons.operator_client import request
    from apex.wire.messages import Snapshot, SnapshotReply

    run = find_run(run_path)
    if "learner" not in run.living():
        raise RunError(f"the learner of {run.path} is down; `apex run --resume` starts it")
    reply = request(run, "learner.params", Snapshot(), SNAPSHOT_TIMEOUT_S)
    assert isinstance(reply, SnapshotReply)
    saved, replay = reply.saved, reply.saved["replay"]
    if as_json:
        echo_json(saved)
    else:
        click.echo(f"checkpoint {saved['checkpoint']} at learner step {saved['learner_step']:,}")
        click.echo(
            "replay did not answer"
            if replay is None
            else f"replay {replay['items']:,} items"
            + (
                ""
                if replay["durable"]
                else ", NOT on disk (see replay.durability, or the disk is full)"
            )
        )
    if saved["checkpoint"] is None or replay is None or not replay["durable"]:
        sys.exit(int(ExitCode.DEGRADED))


@click.command()
@preset_option
@click.option(
    "--config", "config_file", type=click.Path(path_type=Path), help="A TOML configuration file."
)
@own_code_options
@set_option
@click.option("--actors", type=click.IntRange(1), help="Actors to start (actor.count).")
@click.option(
    "--run",
    "run_path",
    type=click.Path(path_type=Path),
    shell_complete=complete_run,
    help="The run's directory.",
)
@click.option(
    "--engine",
    type=click.Choice(["supervisor", "local", "none"]),
    help="What keeps the daemons alive; default: supervisor. none: only prepare the directory.",
)
@click.option("--endpoints", type=click.Path(path_type=Path), help="An endpoints file.")
@click.option("--seed", type=click.IntRange(0), help="run.seed")
@click.option("--device", help="learner.device: auto, cpu, cuda, cuda:N")
@click.option("--init-from", metavar="CHECKPOINT", help="Start with the parameters of CHECKPOINT.")
@click.option(
    "--until-return", type=float, help="End the run when an evaluation reaches this mean return."
)
@click.option("--resume", is_flag=True, help="Continue the run from its newest checkpoint.")
@click.option("--detach", is_flag=True, help="Return once the daemons are started.")
@click.option(
    "--serial", is_flag=True, help="Run in this process only, without sockets; reproducible."
)
@click.option(
    "--show-running", is_flag=True, help="If this preset is already running, show that run."
)
def run(
    preset: str | None,
    config_file: Path | None,
    env: str | None,
    algorithm: str | None,
    settings: tuple[str, ...],
    actors: int | None,
    run_path: Path | None,
    engine: str | None,
    endpoints: Path | None,
    seed: int | None,
    device: str | None,
    init_from: str | None,
    until_return: float | None,
    resume: bool,
    detach: bool,
    serial: bool,
    show_running: bool,
) -> None:
    """Start a run, or resume one, and show its progress."""
    from apex.cli.live_view import watch_run
    from apex.host.orphans import ending_children

    all_settings = [
        *settings,
        *own_code_settings(env, algorithm),
        *_option_settings(actors, seed, device, init_from, until_return),
    ]
    running = _running(preset) if show_running else None
    if running is not None:
        click.echo(f"{running.path} is running: showing it", err=True)
        sys.exit(watch_run(running))
    if resume:
        _check_resumes(config_file, env, algorithm, endpoints, init_from)
    if serial and (resume or detach or engine or endpoints):
        raise UsageError(SERIAL_EXCLUDES)
    with ending_children(Path.cwd()):  # of the environment that is tried
        if resume:
            directory = _resumed(run_path, preset, all_settings)
        else:
            directory = _new(preset, config_file, all_settings, run_path, endpoints)
    if serial:
        _run_serially(directory)
        return
    _start(directory, engine or "supervisor")
    if engine != "none" and not detach:
        sys.exit(watch_run(directory))


def _option_settings(
    actors: int | None,
    seed: int | None,
    device: str | None,
    init_from: str | None,
    until_return: float | None,
) -> list[str]:
    """Single options as settings of `--set`."""
    given = {
        "actor.count": actors,
        "run.seed": seed,
        "learner.device": quoted(device) if device else None,
        "run.init_from": quoted(str(Path(init_from).resolve())) if init_from else None,
        "run.until_return": until_return,
    }
    return [f"{key}={value}" for key, value in given.items() if value is not None]


def _check_resumes(
    config_file: Path | None,
    env: str | None,
    algorithm: str | None,
    endpoints: Path | None,
    init_from: str | None,
) -> None:
    """Raise `UsageError` if `--resume` comes with an option for new runs only."""
    given = {
        "--config": config_file,
        "--env": env,
        "--algorithm": algorithm,
        "--endpoints": endpoints,
        "--init-from": init_from,
    }
    refused = [option for option, value in given.items() if value is not None]
    if refused:
        raise UsageError(f"{RESUME_EXCLUDES} {', '.join(refused)}")


def _running(preset: str | None) -> RunDirectory | None:
    """The newest run with living daemons whose environment is the preset's."""
    from apex.config.loading import preset_table
    from apex.runs import engine_record

    wanted = preset_table(preset)["env"]["id"] if preset else None
    for candidate in all_runs():
        alive = candidate.living() or engine_record.living_engine(candidate)
        if alive and wanted in (None, candidate.facts().env.env_id):
            return candidate
    return None


def _resumed(run_path: Path | None, preset: str | None, settings: Sequence[str]) -> RunDirectory:
    from apex.launch.prepare import check_preset, resume_run
    from apex.runs import engine_record

    directory = find_run(run_path)
    record = engine_record.living_engine(directory)
    if record is not None or directory.living():
        raise UsageError(
            f"{directory.path} is running; stop it first (`apex stop`), or show it (`apex watch`)"
        )
    if preset is not None:
        check_preset(directory, preset)
    resume_run(directory, settings)
    return directory


def _new(
    preset: str | None,
    config_file: Path | None,
    settings: Sequence[str],
    run_path: Path | None,
    endpoints: Path | None,
) -> RunDirectory:
    from apex.config.loading import read_table
    from apex.daemons.log_format import log_to_stderr
    from apex.launch.prepare import new_run

    log_to_stderr("run")
    return new_run(read_table(preset, config_file, settings), run_path, endpoints)


def _run_serially(directory: RunDirectory) -> None:
    from apex.host.orphans import ending_children
    from apex.launch.single_process import SerialRun

    with ending_children(directory.path):
        run = SerialRun(directory)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: run.trainer.finish(ASKED_TO_STOP))
        reason = run.run()
    if reason != ASKED_TO_STOP:
        directory.write_outcome(reason)
    click.echo(f"{directory.path}: {reason}", err=True)


def _start(directory: RunDirectory, name: str) -> None:
    from apex.daemons.catalog import daemon_names
    from apex.launch import engine

    if name == "none":
        click.echo(
            f"{directory.path} is ready; start its daemons with --run {quote(str(directory.path))}:"
        )
        for daemon in daemon_names(directory.config()):
            click.echo(f"  {daemon}")
        return
    chosen: EngineName = "local" if name == "local" else "supervisor"
    try:
        record = engine.start_detached(directory, chosen)
    except KeyboardInterrupt:
        folder = quote(str(directory.path))
        click.echo(
            f"apex: interrupted by Ctrl-C, and stopped; `apex run --resume --run {folder}` starts "
            f"it again, `apex runs rm {folder}` removes it",
            err=True,
        )
        sys.exit(INTERRUPTED)
    click.echo(f"{directory.path}: started by {chosen}, pid {record.pid}", err=True)


@click.command()
@run_option
def watch(run_path: Path | None) -> None:
    """Show the progress of a run; Ctrl-C leaves it running."""
    from apex.cli.live_view import watch_run

    sys.exit(watch_run(find_run(run_path)))


@click.command()
@run_option
def stop(run_path: Path | None) -> None:
    """Stop a run: all daemons and attached actors drain. Returns when all have ended."""
    from apex.host.orphans import end_left
    from apex.launch import engine
    from apex.runs import engine_record

    directory = find_run(run_path)
    if not directory.living() and engine_record.living_engine(directory) is None:
        alive = [one for one in all_runs() if one.living() or engine_record.living_engine(one)]
        left = end_left(directory.path)
        if left:
            click.echo(f"ended what its daemons had left behind: {len(left)} processes", err=True)
        others = "".join(
            f"; {one.path} is: stop it with --run {quote(str(one.path))}" for one in alive
        )
        click.echo(f"{directory.path} is not running{others}", err=True)
        return
    killed = engine.stop(directory)
    if killed:
        click.echo(f"killed because they did not drain in time: {', '.join(killed)}", err=True)
        sys.exit(1)
    click.echo(f"{directory.path}: stopped", err=True)
