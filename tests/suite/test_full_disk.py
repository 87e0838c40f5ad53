"""Full disks: a small file system for the insert log, and a limit on file sizes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.builders import mount_tmpfs, unmount
from tests.support.suite import Suite


@pytest.fixture
def small_disk(suite: Suite, small: tuple[str, ...]) -> Iterator[Path]:
    """The run's `replay/`, on a file system of 1 MB."""
    suite.apex("run", *small, "--engine", "none", "--set", "replay.segment_mb=0.3",
               "--set", "actor.num_envs=16")  # fmt: skip
    folder = suite.run.replay
    folder.mkdir(mode=0o700)
    if not mount_tmpfs(folder, 1):
        pytest.skip("only root may mount a file system here")
    yield folder
    suite.end()
    unmount(folder)


def test_training_continues_on_a_full_disk_and_durability_returns_with_free_space(
    suite: Suite, small_disk: Path
) -> None:
    suite.start("--resume")
    full = suite.wait_for(lambda s: s["replay"]["alarm"], 120.0, "the disk is full")
    assert "No space left on device" in full["replay"]["alarm"]
    assert full["replay"]["durable"] is False
    step, inserted = full["learner"]["learner_step"], full["replay"]["inserted"]
    degraded = suite.wait_for(
        lambda s: (
            s["learner"]["learner_step"] > step + 200 and s["replay"]["inserted"] > inserted + 200
        ),
        60.0,
        "inserts and training go on",
    )
    assert degraded["run"]["health"] == "degraded"
    assert "inserts are not durable: " in degraded["run"]["alarms"][0]
    assert mount_tmpfs(small_disk, 200, "remount")
    good = suite.wait_for(
        lambda s: s["replay"]["durable"] and s["run"]["health"] == "healthy", 60.0, "all well again"
    )
    assert good["replay"]["alarm"] is None
    log = (suite.run.logs / "replay.log").read_text()
    assert log.count("INSERTS ARE NOT DURABLE") >= 1 and "the insert log is writable again" in log


def test_tensorboard_files_stop_without_ending_the_process_when_the_disk_is_full(tmp_path):
    """Runs in a separate process with a limit on file sizes."""
    script = (
        "import os, resource, signal, threading\n"
        "from pathlib import Path\n"
        "from apex.daemons.metrics import MetricsLog\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"log = MetricsLog(Path({str(tmp_path)!r}), 'learner', 10, tensorboard=True)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "for step in range(3000):\n"
        "    log.write({f'k{i}': float(i) for i in range(10)}, step=step)\n"
        "log.close()\n"
        "os._exit(7 if threading.active_count() == 1 else 8)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60)
    assert done.returncode == 7
    assert done.stderr.count(b"TensorBoard files: cannot write, stopped writing them: ") == 1
