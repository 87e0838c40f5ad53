"""Run all checks on the machine, the installation, the runs, and one preset or run."""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from apex.doctor import (
    environment,
    gpu,
    left_sockets,
    limits,
    memory,
    packages,
    processes,
    run_directories,
    system,
)
from apex.doctor.findings import Finding, guarded
from apex.doctor.subject import Subject, preset_subject, run_subject
from apex.host import hardware
from apex.host.orphans import marked
from apex.host.paths import install_root, socket_directory_path
from apex.launch.open_files import limits_of, may_raise_limits
from apex.plugins import RAISED
from apex.runs.directory import RunDirectory, all_runs, runs_root


def examine(what: str | RunDirectory) -> Iterator[Finding]:
    """Yield all findings about this machine, its runs, and whether a preset or run can run here.

    Args:
        what: a preset's name, or a run.
    """
    named = [what] if isinstance(what, RunDirectory) else []
    yield from guarded("python", _installation)
    yield from _subject_findings(what)
    yield from guarded("processes", lambda: processes.check_lost(processes.apex_processes()))
    yield from guarded("processes", lambda: processes.check_left(marked()))
    yield from guarded("runs", lambda: _all_runs_findings(named))


def _installation() -> Iterator[Finding]:
    """Check the installation, whatever is to run."""
    supported, requirements, _ = packages.own_metadata()
    yield from packages.check_python(platform.python_version(), supported)
    yield from packages.check_packages(requirements, packages.look)
    yield from packages.check_other_apex(packages.look)
    yield from packages.check_files(install_root())


def _subject_findings(what: str | RunDirectory) -> Iterator[Finding]:
    """Run the checks that depend on the preset or run."""
    try:
        subject = run_subject(what) if isinstance(what, RunDirectory) else preset_subject(what)
    except RAISED as error:
        found = f"{type(error).__name__}: {error}"
        remedy = "follow the findings about packages and files, then run `apex doctor` again"
        yield Finding("configuration", "problem", found, "a configuration that can be used", remedy)
        yield from guarded("torch", lambda: gpu.check_gpu(gpu.facts(), "auto"))
        return
    for name, check in _checks(subject):
        yield from guarded(name, check)


def _checks(subject: Subject) -> list[tuple[str, Callable[[], Iterator[Finding]]]]:
    """The checks of a preset or run, with their names, in the order of the output."""
    config = subject.config
    return [
        ("extras", partial(_extras, config.env.id)),
        ("torch", lambda: gpu.check_gpu(gpu.facts(), config.learner.device)),
        ("GPU", partial(_cuda_learner, subject)),
        ("roms", partial(environment.check_roms, config.env.id)),
        ("environment", partial(_environment, subject)),
        ("cores", lambda: system.check_cores(config, hardware.cores())),
        ("memory", partial(_memory, subject)),
        ("disk", partial(_disk, subject)),
        ("open files", partial(_open_files, subject)),
        ("threads", partial(_threads, subject)),
    ]


def _extras(env_id: str) -> Iterator[Finding]:
    _, requirements, extras = packages.own_metadata()
    needed = environment.extra_of(env_id)
    yield from packages.check_extras(requirements, extras, packages.look, needed)


def _environment(subject: Subject) -> Iterator[Finding]:
    yield from environment.check_environment(subject.name, subject.environment, subject.failure)


def _cuda_learner(subject: Subject) -> Iterator[Finding]:
    """Check what a learner on a GPU needs; nothing if it trains on the CPU or is running."""
    import torch  # imported late: it may be missing

    from apex.doctor import cuda_learner

    device = subject.config.learner.device
    if not torch.cuda.is_available() or device == "cpu" or subject.running:
        return
    yield from cuda_learner.check_cuda_learner(
        subject.config,
        subject.schema,
        subject.parameter_bytes,
        subject.activation_bytes,
        cuda_learner.facts(device),
    )


def _memory(subject: Subject) -> Iterator[Finding]:
    if subject.running:
        yield Finding("memory", "ok", f"{subject.name} is running, so it has what it needs")
    elif subject.schema is None:
        yield Finding("memory", "note", "not estimated: the environment cannot be made")
    else:
        available = hardware.available_memory_bytes()
        # A new run's table is limited to a share of what is available; a run's table is as it is.
        limiting = hardware.memory_bytes() if subject.run is not None else available
        needed = memory.memory_needed(
            subject.config, subject.schema, subject.parameter_bytes, limiting
        )
        yield from memory.check_memory(needed, available)


def _disk(subject: Subject) -> Iterator[Finding]:
    folder = _existing(subject.run.path if subject.run is not None else runs_root())
    if subject.schema is None:
        yield Finding("disk", "note", "not estimated: the environment cannot be made")
        return
    status = os.statvfs(folder)
    needed = memory.disk_needed(subject.config, subject.schema, subject.parameter_bytes)
    yield from memory.check_disk(needed, status.f_bavail * status.f_frsize, str(folder))


def _existing(path: Path) -> Path:
    """A directory, or its nearest parent that exists."""
    path = path.absolute()
    return next(one for one in (path, *path.parents) if one.is_dir())


def _open_files(subject: Subject) -> Iterator[Finding]:
    own = limits_of(resource.RLIMIT_NOFILE)
    privileged = may_raise_limits()
    yield from limits.check_open_files(subject.config, own, privileged=privileged)


def _threads(subject: Subject) -> Iterator[Finding]:
    if subject.running:
        yield Finding("threads", "ok", f"{subject.name} is running, so it has what it needs")
        return
    needed = limits.threads_needed(subject.config, limits.blas_threads())
    left = limits.threads_left(privileged=may_raise_limits())
    yield from limits.check_threads(needed, left)


def _all_runs_findings(named: list[RunDirectory]) -> Iterator[Finding]:
    """Check the runs under the root, those in `named`, and the runs of orphaned daemons."""
    known = {run.path: run for run in (*all_runs(), *named)}
    yield from run_directories.check_all(known.values(), runs_root())
    for run in known.values():
        yield from guarded(run_directories.name_of(run), partial(run_directories.check_run, run))
    for path in {one.run for one in processes.apex_processes()} - known.keys():
        run = RunDirectory(path)
        yield from guarded(
            run_directories.name_of(run), partial(run_directories.check_orphans, run)
        )
    newest = max((run.schema_file.stat().st_mtime for run in known.values()), default=0.0)
    yield from system.check_clock(time.time(), newest)
    yield from left_sockets.check_new_sockets(
        left_sockets.default_endpoints(), socket_directory_path(runs_root() / "new")
    )
