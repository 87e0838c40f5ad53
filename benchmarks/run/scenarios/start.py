"""Start times of a command, the replay server and a suite of 8 actors."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

from apex.daemons.catalog import ACTOR
from apex.launch import engine
from apex.launch.prepare import prepare_run, preset_config
from benchmarks.provenance import ROOT
from benchmarks.run import cores
from benchmarks.run.daemons import Asker, Daemons, pong_run, until
from benchmarks.run.figures import Figure, figure, in_turn

APEX = Path(sys.executable).with_name("apex")
ACTORS = 8
BARS_S = {"help": 0.3, "replay": 1.0, "suite": 15.0}


def ran(*command: str | Path) -> float:
    """Seconds that a command takes."""
    began = time.monotonic()
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def imported(modules: str) -> Callable[[], float]:
    """Measure an interpreter that imports some modules and ends."""
    return lambda: ran(sys.executable, "-c", f"import {modules}")


def replay_ready(folder: Path) -> float:
    """Seconds from the replay server's start to its first answer."""
    run = pong_run(folder, [])
    began = time.monotonic()
    with Daemons(run) as daemons:
        daemons.replay(cores.AVAILABLE)
        daemons.asker("replay.sample")
        return time.monotonic() - began


def suite_healthy(folder: Path) -> float:
    """Seconds from the engine's start until learner and replay answer and all actors step."""
    settings = [f"actor.count={ACTORS}", "actor.num_envs=2", "evaluator.enabled=false"]
    run = prepare_run(folder, preset_config("pong", settings))
    began = time.monotonic()
    engine.start_detached(run, "local")
    askers = [Asker(run, "learner.params"), Asker(run, "replay.sample")]
    try:

        def healthy() -> bool:
            learner, _ = [asker.status() for asker in askers]
            phases = [actor["state"] for actor in learner["actors"]]
            return len(phases) == ACTORS and all(phase in ACTOR.healthy_states for phase in phases)

        until(healthy, f"{ACTORS} actors step")
        return time.monotonic() - began
    finally:
        for asker in askers:
            asker.close()
        engine.stop(run)


def measure(folder: Path) -> Sequence[Figure]:
    """Measure all cases."""
    numbers = count()

    def fresh() -> Path:
        return folder / str(next(numbers))

    pythons = "one interpreter that imports"
    cases = (
        ("apex --help", "help", lambda: ran(APEX, "--help"), imported("click"), f"{pythons} click"),
        ("replay ready", "replay", lambda: replay_ready(fresh()), imported("numpy, zmq, msgspec"),
         f"{pythons} NumPy, pyzmq and msgspec"),
        (f"{ACTORS} actors healthy", "suite", lambda: suite_healthy(fresh()),
         imported("torch, gymnasium, ale_py"), f"{pythons} torch, gymnasium and ale_py"),
    )  # fmt: skip
    return [
        figure(name, "s", in_turn(ours, bare), limit, goal=BARS_S[kind], lower_is_better=True)
        for name, kind, ours, bare, limit in cases
    ]
