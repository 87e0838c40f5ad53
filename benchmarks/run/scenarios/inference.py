"""Central inference compared with local inference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from apex.acting.decisions import Inputs
from apex.daemons.inference.batched_policy import batched
from apex.host import process_tuning
from apex.runs.directory import RunDirectory
from benchmarks.run import cores
from benchmarks.run.daemons import Asker, Daemon, Daemons, pong_run, until
from benchmarks.run.figures import REPETITIONS, Figure, figure, in_turn
from benchmarks.run.pong import algorithm_of
from benchmarks.run.scenarios.actor import NOT_LEARNING, env_steps
from benchmarks.run.workers import Step, Worker

SECONDS = 8.0
ACTORS = len(cores.OTHERS) - 1
"""One actor per core, less one core for the server."""
SUITES = [(1, 16), (2, 8), (4, 4), *([(ACTORS, 16)] if ACTORS > 4 else [])]
"""Numbers of actors, and of environments per actor."""
BATCHES = (1, 8, 32, 128, 512)
BATCH_SECONDS = 1.0


class Suite:
    """Actors that step and insert, and the servers that they need."""

    def __init__(self, run: RunDirectory, actors: int) -> None:
        self._daemons = Daemons(run)
        self._acting: list[Daemon] = []
        self._server: Asker | None = None
        self.batch_mean = 0.0
        """Environments per decision of the server, at the last measurement."""
        try:
            self._start(run, actors)
        except BaseException:
            self.close()
            raise

    def _start(self, run: RunDirectory, actors: int) -> None:
        self._daemons.replay(cores.TRAINING)
        self._daemons.learner(cores.TRAINING, ())
        if run.config().central:
            self._acting.append(self._daemons.inference(cores.OTHERS))
            self._server = self._daemons.asker("inference.act")
        self._acting += [self._daemons.actor(cores.OTHERS, index=k) for k in range(actors)]
        self._asker = self._daemons.asker("learner.params")
        until(lambda: env_steps(self._asker.status()) > 2000, "the actors step")

    def rate(self) -> float:
        """Env steps per second of all actors."""
        self._daemons.check()
        rate = self._asker.rate(env_steps, SECONDS)
        if self._server is not None:
            self.batch_mean = float(self._server.status()["batch_mean"])
        return rate

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Pause the actors for the duration of the context."""
        with ExitStack() as stack:
            for daemon in reversed(self._acting):
                stack.enter_context(daemon.stopped())
            yield

    def __enter__(self) -> Suite:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """End all processes."""
        self._daemons.__exit__()


def acting(folder: Path, actors: int, envs: int, repetitions: int = REPETITIONS) -> Figure:
    """Env steps of `actors` actors with `num_envs` environments each."""

    def suite(kind: str) -> Suite:
        settings = (f"actor.count={actors}", f"actor.num_envs={envs}", f"actor.inference={kind}")
        run = pong_run(folder / f"{kind}_{actors}", [*settings, *NOT_LEARNING])
        return Suite(run, actors)

    with suite("local") as local:
        with local.stopped():
            central = suite("central")
        with central:

            def rate_of(one: Suite, other: Suite) -> Callable[[], float]:
                def rate() -> float:
                    with other.stopped():
                        return one.rate()

                return rate

            pairs = in_turn(rate_of(central, local), rate_of(local, central), repetitions)
    return figure(f"{actors} actors of {envs} environments", "env steps/s", pairs,
                  "inference in each actor", batch_mean=central.batch_mean,
                  a_core=round(pairs[-1][0] / len(cores.OTHERS), 1))  # fmt: skip


def deciding(path: Path, batch_size: int, device: str) -> Step:
    """Step of the run's policy on random frames, as the inference server decides.

    It counts environments. One batch is in flight at a time, so that its time is the latency.
    """
    process_tuning.set_up(1)
    policy = algorithm_of(RunDirectory(path)).policy()
    policy.to(process_tuning.pick_device(device))
    server = batched(policy, batch_size)
    frames = np.random.default_rng(1).integers(0, 256, (batch_size, 4, 84, 84), dtype=np.uint8)
    nothing = np.zeros(batch_size)
    inputs = Inputs(frames, np.zeros((batch_size, 0), np.float32), nothing, nothing)

    def step() -> float:
        server.begin([inputs], None).finish()
        return batch_size

    return step


def curve(
    run: RunDirectory, batches: Sequence[int] = BATCHES, repetitions: int = REPETITIONS
) -> Iterator[Figure]:
    """Latency and decisions per second of a GPU by batch size, compared with a core."""
    for batch_size in batches:
        make = partial(Worker, deciding, cores.TRAINING, run.path, batch_size)
        with make("cuda") as ours, make("cpu") as bare:
            pairs = in_turn(
                lambda: ours.measure(BATCH_SECONDS),
                lambda: bare.measure(BATCH_SECONDS),
                repetitions,
            )
        latency_ms = round(1e3 * batch_size / pairs[-1][0], 3)
        yield figure(f"GPU, batch {batch_size}", "environments/s", pairs, "one core of the CPU",
                     latency_ms=latency_ms)  # fmt: skip


def measure(folder: Path) -> Sequence[Figure]:
    """Measure all cases."""
    shown = [acting(folder, actors, envs) for actors, envs in SUITES]
    if torch.cuda.is_available():
        shown += curve(pong_run(folder / "curve", []))
    return shown
