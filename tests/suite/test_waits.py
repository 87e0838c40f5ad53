"""Waits of tests for other processes: they end without progress, and are extended with it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.processes import finished, running
from tests.support.waiting import others_cpu_s, wait_until

BUSY = "import time\nend = time.process_time() + 1.2\nwhile time.process_time() < end: pass\n"


def test_command_that_does_nothing_is_killed_and_one_that_works_is_not() -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        finished(["sleep", "60"], 0.1)
    done = finished([sys.executable, "-c", f"{BUSY}print('done')"], 1.0)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")


def test_work_of_other_processes_is_progress_of_a_wait() -> None:
    began = others_cpu_s()
    with running([sys.executable, "-c", "while True: pass"]):
        assert wait_until(lambda: others_cpu_s() > began + 1, 5.0, "two seconds of work")
