"""`apex run` until a return is reached, watched; its results are packed into one archive.

    python -m benchmarks.gpu.run_to_return NAME [--set SECTION.KEY=VALUE ...]

The environment has the rest: PRESET, ACTORS, UNTIL, SEED.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from apex.daemons.status.gathering import gather
from apex.errors import ApexError
from apex.evaluation import curves
from apex.evaluation.curves import Curve
from apex.launch import engine
from apex.runs import engine_record
from apex.runs.directory import RunDirectory
from benchmarks.gpu.cpu_watch import CpuWatch, profile
from benchmarks.gpu.stage import OUT, WORK, emit, left_s

PRESET, ACTORS = os.environ.get("PRESET", "pong"), os.environ.get("ACTORS", "")
UNTIL, SEED = os.environ.get("UNTIL", "18"), os.environ.get("SEED", "1")
WATCH_S, REPORT_S = 2.0, 10.0
"""Seconds between two looks at the run, and between two lines about it."""
PROFILE_AFTER_S, PROFILE_NEEDS_S = 25.0, 12.0
"""Seconds after the first update at which the daemons are profiled, and what that takes."""
END_S = 22.0
"""Seconds for the end of the run and for packing."""
MAX_ARCHIVE_BYTES, MAX_PACKED_BYTES = 15 << 20, 60 << 20
APEX = [sys.executable, "-c", "from apex.cli.main import main; main()"]
GPU_QUERY = "timestamp,utilization.gpu,utilization.memory,memory.used,clocks.sm,power.draw"
PACKED = (
    "*.toml", "*.json", "logs/*.log", "metrics/*.jsonl", "watched/*",
    "checkpoints/best_*/manifest.json",
)  # fmt: skip


class Watch:
    """Looks at a run again and again, and writes what is new.

    Args:
        run: the run.
        name: of the run, for the lines.
        began: `time.time()` at the command.
        status_file: gets a line for each look.
    """

    def __init__(self, run: RunDirectory, name: str, began: float, status_file: IO[str]) -> None:
        self._run = run
        self._name = name
        self._began = began
        self._file = status_file
        self._cpu = CpuWatch()
        self._evaluations = 0
        self._reported = 0.0
        self._profiled = False
        self.first_update: float | None = None
        """`time.time()` when an update was seen first."""

    def look(self) -> None:
        """Look once."""
        now, status = time.time(), self._status()
        cores = self._cpu.cores(self._run.living())
        row = {"t": round(now - self._began, 1), "cores": cores, "status": status}
        self._file.write(json.dumps(row, default=str) + "\n")
        self._file.flush()
        learner = status.get("learner") or {}
        if self.first_update is None and learner.get("learner_step", 0) > 0:
            self.first_update = now
            self._emit(event="first update", device=learner.get("device"))
        if now - self._reported > REPORT_S:
            self._reported = now
            self._report(status, cores)
        self._new_evaluations()
        self._profile_once(now)

    def _status(self) -> dict[str, Any]:
        try:
            return gather(self._run).as_map()
        except (ApexError, OSError) as error:  # such as a daemon that is starting
            return {"error": repr(error)}

    def _emit(self, **values: Any) -> None:
        emit(run=self._name, at_s=round(time.time() - self._began, 1), **values)

    def _report(self, status: dict[str, Any], cores: dict[str, float]) -> None:
        learner, whole = status.get("learner") or {}, status.get("run") or {}
        actors = status.get("actors") or ()
        self._emit(
            env_steps=whole.get("env_steps"),
            learner_step=learner.get("learner_step"),
            updates_s=learner.get("updates_per_s"),
            waits=learner.get("data_wait_fraction"),
            env_steps_s=round(sum(actor["env_steps_per_s"] for actor in actors), 1),
            samples_s=(status.get("replay") or {}).get("samples_per_s"),
            bottleneck=whole.get("bottleneck"),
            alarms=whole.get("alarms"),
            cores=cores,
        )

    def _new_evaluations(self) -> None:
        found = evaluations(self._run)
        for one in found[self._evaluations :]:
            self._emit(event="evaluation", **one)
        self._evaluations = len(found)

    def _profile_once(self, now: float) -> None:
        due = self.first_update is not None and now - self.first_update > PROFILE_AFTER_S
        if due and not self._profiled and left_s() > END_S + PROFILE_NEEDS_S:
            self._profiled = True
            profile(self._run.living(), self._run.path / "watched")


def evaluations(run: RunDirectory) -> list[dict[str, Any]]:
    """The evaluator's complete records."""
    try:
        lines = (run.metrics / "evaluator.jsonl").read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines if line.endswith("}")]


def start(name: str, path: Path, settings: list[str], stop: list[str]) -> bool:
    """Start the run; returns whether it has started.

    The command leads a session of its own: `timeout` signals a whole group, and a start that is
    cut short leaves an engine behind.
    """
    options = ["run", "--preset", PRESET, "--until-return", UNTIL, "--seed", SEED]
    options += ["--run", str(path), "--detach", *(["--actors", ACTORS] if ACTORS else [])]
    began = time.time()
    with (WORK / f"{name}-start.txt").open("w+") as output:
        command = [*APEX, *options, *settings]
        starting = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        while starting.poll() is None and not stop and left_s() > END_S:
            time.sleep(0.05)
        code = starting.wait(30)
        output.seek(0)
        text = output.read()
    print(text, flush=True)
    emit(
        run=name, command=" ".join(options + settings), rc=code,
        seconds=round(time.time() - began, 2), error=text[-500:] if code else None,
    )  # fmt: skip
    return code == 0


@contextmanager
def gpu_log(path: Path) -> Iterator[None]:
    """Log the use of the GPU, twice a second, while the context lasts."""
    if shutil.which("nvidia-smi") is None:
        yield
        return
    command = ["nvidia-smi", f"--query-gpu={GPU_QUERY}", "--format=csv,noheader,nounits"]
    with path.open("w") as file:
        query = subprocess.Popen([*command, "-lms", "500"], stdout=file, stderr=subprocess.DEVNULL)
        try:
            yield
        finally:
            query.terminate()
            query.wait()


def pack(run: RunDirectory, name: str) -> None:
    """Write the curve, and an archive of the run's small files; the largest are left out."""
    seed = run.config().run.seed
    if evaluations(run):
        curves.write_csv(OUT / f"{name}-curve.csv", [Curve(PRESET, seed, curves.of_run(run))])
    files = [path for pattern in PACKED for path in run.path.glob(pattern)]
    buffer, total = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path in sorted(files, key=lambda file: file.stat().st_size):
            total += path.stat().st_size
            # engine.json has the password of supervisord's socket
            if total <= MAX_PACKED_BYTES and path.name != "engine.json":
                archive.add(path, f"{name}/{path.relative_to(run.path)}")
    if buffer.tell() > MAX_ARCHIVE_BYTES:
        emit(run=name, error=f"not packed: {buffer.tell()} bytes")
        return
    (OUT / f"{name}.tar.gz").write_bytes(buffer.getvalue())


def finish(run: RunDirectory, name: str, began: float) -> bool:
    """Stop the run, write its result and pack it; returns whether it ended by itself."""
    ended = run.outcome_file.exists()
    outcome = json.loads(run.outcome_file.read_text())["reason"] if ended else None
    took_s = round(run.outcome_file.stat().st_mtime - began, 1) if ended else None
    draining = time.time()
    if engine_record.living_engine(run) is not None:
        engine.stop(run)
    returns = [one["mean_return"] for one in evaluations(run)]
    emit(
        run=name, event="end", outcome=outcome, command_to_end_s=took_s,
        best=max(returns, default=None), evaluations=len(returns),
        drain_s=round(time.time() - draining, 1),
    )  # fmt: skip
    pack(run, name)
    return ended


def main(name: str, settings: list[str]) -> int:
    """Run and watch; the exit status is 0 if the run ended by itself."""
    OUT.mkdir(parents=True, exist_ok=True)
    WORK.mkdir(parents=True, exist_ok=True)
    path = WORK / name
    shutil.rmtree(path, ignore_errors=True)
    run, stop = RunDirectory(path), list[str]()
    signal.signal(signal.SIGTERM, lambda *_: stop.append("asked to stop"))
    began = time.time()
    if not start(name, path, settings, stop):
        if run.config_file.exists() and engine_record.living_engine(run) is not None:
            engine.stop(run)
        return 1
    watched = path / "watched"
    watched.mkdir()
    try:
        with gpu_log(watched / "gpu.csv"), (watched / "status.jsonl").open("w") as status_file:
            watch = Watch(run, name, began, status_file)
            while left_s() > END_S and not stop and engine_record.living_engine(run) is not None:
                next_look = time.monotonic() + WATCH_S
                watch.look()
                time.sleep(max(0.0, next_look - time.monotonic()))
    finally:
        ended = finish(run, name, began)
    return 0 if ended else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
