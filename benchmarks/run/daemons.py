"""Real daemons on chosen cores, paused while something else is measured."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from apex.daemons.cpu_affinity import LEARNER_CORES
from apex.daemons.operator_client import operator_client
from apex.errors import ApexError
from apex.launch.prepare import prepare_run, preset_config
from apex.runs.directory import RunDirectory
from apex.wire.messages import Status, StatusReply
from benchmarks.provenance import ROOT
from benchmarks.run import cores

WAIT_S = 240.0
"""Allows for a learner that compiles its update and for a GPU's first use."""
TICK_S = 0.01


def pong_run(folder: Path, settings: Sequence[str]) -> RunDirectory:
    """A run of the preset `pong`: 84x84 frames, 4 stacked, n = 3, the paper's network."""
    common = ["evaluator.enabled=false", "learner.torch_threads=1", "learner.metrics_period_s=3600",
              "learner.checkpoint_period_s=3600"]  # fmt: skip
    return prepare_run(folder, preset_config("pong", [*common, *settings]))


class Asker:
    """Polls the status of one daemon over one connection."""

    def __init__(self, run: RunDirectory, endpoint: str) -> None:
        self._client = operator_client(run, endpoint)

    def status(self) -> dict[str, Any]:
        """The daemon's status. Raises `ApexError` if it does not answer."""
        answer = self._client.request(Status(), WAIT_S).message
        assert isinstance(answer, StatusReply)
        return answer.status

    def counter(self, read: Callable[[dict[str, Any]], int]) -> tuple[int, float]:
        """A counter at the moment at which it changes, and that moment."""
        before = read(self.status())
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            time.sleep(TICK_S)
            now = read(self.status())
            if now != before:
                return now, time.monotonic()
        raise TimeoutError(f"the counter stayed at {before} for {WAIT_S:g} s")

    def rate(self, read: Callable[[dict[str, Any]], int], seconds: float) -> float:
        """The rate of a counter, between two moments at which it changes."""
        first, began = self.counter(read)
        time.sleep(seconds)
        last, ended = self.counter(read)
        return (last - first) / (ended - began)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for a condition. Raises `TimeoutError`."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {WAIT_S:g} s in vain for: {what}")
        time.sleep(TICK_S)


class Daemon:
    """One daemon on chosen cores.

    Args:
        command: arguments after the interpreter.
        kept_to: cores for all its threads, except for a learner's training thread.
        log: file for its output.
        trains_on: cores reserved for the training thread.
    """

    def __init__(
        self, command: Sequence[str | Path], kept_to: Iterable[int], log: Path,
        trains_on: Iterable[int] = (),
    ) -> None:  # fmt: skip
        self._log = log
        kept = list(kept_to)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, *map(str, command)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, LEARNER_CORES: ",".join(map(str, trains_on))},
                preexec_fn=lambda: cores.start_on(kept),
            )
        self.pid = self.process.pid

    def check(self) -> None:
        """Raise `ApexError` if it has ended."""
        if self.process.poll() is not None:
            tail = self._log.read_text(errors="replace").splitlines()[-8:]
            raise ApexError("a daemon has ended:\n" + "\n".join(tail))

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Pause it for the duration of the context."""
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill the daemon."""
        self.process.kill()
        self.process.wait()


class Daemons:
    """The daemons of one run, all killed at the end of the context."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self._all: list[Daemon] = []
        self._askers: list[Asker] = []

    def _start(self, *arguments: Any, **named: Any) -> Daemon:
        daemon = Daemon(*arguments, **named)
        self._all.append(daemon)
        return daemon

    def replay(self, kept_to: Iterable[int]) -> Daemon:
        """Start the replay server."""
        command = [ROOT / "bin" / "replay", "--run", self.run.path]
        return self._start(command, kept_to, self.run.logs / "replay.log")

    def learner(self, kept_to: Iterable[int], trains_on: Iterable[int]) -> Daemon:
        """Start the learner."""
        command = [ROOT / "bin" / "learner", "--run", self.run.path]
        return self._start(command, kept_to, self.run.logs / "learner.log", trains_on)

    def actor(self, kept_to: Iterable[int], module: str = "", index: int = 0) -> Daemon:
        """Start an actor, or a variant of it from a module."""
        program = ["-m", module] if module else [ROOT / "bin" / "actor"]
        command = [*program, "--run", self.run.path, "--index", str(index)]
        return self._start(command, kept_to, self.run.logs / f"actor_{index:03d}.log")

    def inference(self, kept_to: Iterable[int]) -> Daemon:
        """Start the inference server."""
        command = [ROOT / "bin" / "inference", "--run", self.run.path]
        return self._start(command, kept_to, self.run.logs / "inference.log")

    def asker(self, endpoint: str) -> Asker:
        """Poller of the daemon at an endpoint; returns once the daemon answers."""
        asker = Asker(self.run, endpoint)
        self._askers.append(asker)
        asker.status()
        return asker

    def check(self) -> None:
        """Raise `ApexError` if a daemon has ended."""
        for daemon in self._all:
            daemon.check()

    def __enter__(self) -> Daemons:
        return self

    def __exit__(self, *exception: object) -> None:
        for asker in self._askers:
            asker.close()
        for daemon in reversed(self._all):
            daemon.close()
