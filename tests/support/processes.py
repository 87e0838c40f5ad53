"""Processes of a run, and the executable of one daemon."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support.paths import ROOT
from tests.support.waiting import CPU_TICKS_A_SECOND, MOST_PERIODS, cpu_ticks, wait_until

ARGUMENTS = {
    "replay": (),
    "learner": (),
    "evaluator": (),
    "inference": (),
    "actor": ("--index", "0"),
}
"""Arguments of each executable besides `--run`."""

END_S = {"learner": 30.0}
"""Seconds in which a daemon drains after SIGTERM: five, and a learner's write a checkpoint."""

BUSY_S = 10.0
"""Extra seconds for a busy machine."""


def suite_processes(marker: str) -> list[int]:
    """Ids of the processes whose command line or environment names the run at `marker`."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            words = [*process.cmdline(), *process.environ().values()]
            zombie = process.status() == psutil.STATUS_ZOMBIE
            if process.pid != os.getpid() and not zombie and any(marker in one for one in words):
                found.append(process.pid)
    return found


def gone(pid: int) -> bool:
    """Whether a process has ended, zombies included."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def memory_bytes(pid: int) -> int:
    """Bytes of a process's anonymous memory, exact: `statm` may miss some pages per core."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kilobytes = {
        name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines[1:])
    }
    return 1024 * (int(kilobytes["Anonymous"]) + int(kilobytes["Swap"]))


def daemon_command(daemon: str, *arguments: str) -> list[str]:
    """The command line of one executable of `bin`."""
    return [sys.executable, str(ROOT / "bin" / daemon), *ARGUMENTS[daemon], *arguments]


@contextmanager
def running(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """A process that is killed, and whose pipes are closed, at the end of the block."""
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def finished(
    command: Sequence[str | Path], timeout_s: float, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return its output, as `subprocess.run` does.

    It is killed after `timeout_s` in which it has used no CPU time, or after `MOST_PERIODS` times
    that.

    Raises:
        subprocess.TimeoutExpired: it was killed.
    """
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    ) as process:
        used = 0
        for period in range(1, MOST_PERIODS + 1):
            try:
                output, errors = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                before, used = used, cpu_ticks([process.pid])
                if used == before or period == MOST_PERIODS:
                    process.kill()
                    raise
            else:
                return subprocess.CompletedProcess(command, process.returncode, output, errors)
    raise AssertionError


class DaemonProcess:
    """A running executable and its output."""

    def __init__(self, folder: Path, daemon: str, *arguments: str) -> None:
        self._daemon = daemon
        self._log = folder / f"{daemon}.out"
        with self._log.open("wb") as output:
            self.popen = subprocess.Popen(
                daemon_command(daemon, *arguments), stdout=output, stderr=subprocess.STDOUT
            )

    def wait_for_text(self, text: str, timeout_s: float = 60.0) -> None:
        """Wait until it has written `text`; fails if it ends before."""
        wait_until(
            lambda: text in self.output() or self.popen.poll() is not None,
            timeout_s,
            text,
            progress=lambda: cpu_ticks([self.popen.pid]) // CPU_TICKS_A_SECOND,
        )
        assert text in self.output(), self.output()

    def output(self) -> str:
        """All output so far."""
        return self._log.read_text(errors="replace")

    def end(self) -> int:
        """Send SIGTERM and return its exit code after the drain."""
        self.popen.send_signal(signal.SIGTERM)
        wait_until(
            lambda: self.popen.poll() is not None,
            END_S.get(self._daemon, 5.0 + BUSY_S),
            f"the {self._daemon} has drained",
            progress=lambda: cpu_ticks([self.popen.pid]),
        )
        return self.popen.wait()

    def kill(self) -> None:
        """Kill it."""
        self.popen.kill()
        self.popen.wait()
