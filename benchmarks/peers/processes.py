"""Peers in processes with their own interpreters, controlled like `benchmarks.run.workers`."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from apex.errors import ApexError
from benchmarks.peers.guard import signal_all
from benchmarks.provenance import ROOT
from benchmarks.run import cores

ENVIRONMENTS = ROOT / ".venv-peers"
READY_TIMEOUT_S = 240.0
RATE_TIMEOUT_S = 120.0


class Peer:
    """A process tree that repeats one step for a given time.

    Args:
        environment: environment whose interpreter it runs in.
        loop: module of `benchmarks.peers.loops`.
        kept_to: its cores.
        folder: folder for its output.
        options: options of the loop.
    """

    def __init__(
        self, environment: str, loop: str, kept_to: Iterable[int], folder: Path, **options: Any
    ) -> None:
        python = ENVIRONMENTS / environment / "bin" / "python"
        if not python.exists():
            raise ApexError(f"{environment}: no such environment; `make bench-peers` creates it")
        command = [str(python), "-m", f"benchmarks.peers.loops.{loop}", json.dumps(options)]
        self._loop, self._log, kept = loop, folder / f"{loop}.log", list(kept_to)
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.peers.guard", *command],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                preexec_fn=lambda: cores.keep_to(kept),
            )
        try:
            self.ready: dict[str, Any] = self._reply(READY_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    def _reply(self, timeout_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        answered, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if answered else b""
        if not line:
            tail = self._log.read_text(errors="replace").splitlines()[-12:]
            how = "has ended" if answered else f"did not answer within {timeout_s:g} s"
            raise ApexError(f"{self._loop} {how}:\n" + "\n".join(tail))
        reply: dict[str, Any] = json.loads(line)
        return reply

    def begin(self, seconds: float) -> None:
        """Start working for that long; `rates` returns the result."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{seconds}\n".encode())
        self._process.stdin.flush()

    def rates(self) -> dict[str, float]:
        """Work done per second, by kind. Raises `ApexError`."""
        reply = self._reply(RATE_TIMEOUT_S)
        return {kind: done / reply["elapsed"] for kind, done in reply["done"].items()}

    def rate(self) -> float:
        """Work done per second, for a peer with one kind of work."""
        (rate,) = self.rates().values()
        return rate

    def measure_all(self, seconds: float) -> dict[str, float]:
        """Work done per second, by kind, over that many seconds."""
        self.begin(seconds)
        return self.rates()

    def measure(self, seconds: float) -> float:
        """Work done per second, over that many seconds."""
        self.begin(seconds)
        return self.rate()

    def stop(self) -> None:
        """Pause it."""
        signal_all(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        """Continue it."""
        signal_all(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        """End the whole process tree."""
        self._process.terminate()
        self._process.communicate()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
