"""Crash-loop detection: backoff, giving up, the recorded reason."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apex.daemons import restart_backoff
from apex.daemons.restart_backoff import CrashHistory
from apex.errors import DeviceMemoryError, ExitCode
from apex.host import process_tuning
from tests.support.builders import fill, mount_tmpfs, unmount
from tests.support.clock import Clock


@pytest.fixture
def path(tmp_path):
    return tmp_path / "learner.json"


def crash(
    path: Path,
    lived_s: float,
    code: ExitCode | None = None,
    error: str = "x",
    wall_clock_ns: Callable[[], int] = time.time_ns,
) -> CrashHistory:
    """One start that ends after `lived_s` seconds; without a code it is killed."""
    history = CrashHistory(path, 8, wall_clock_ns)
    history.record_start()
    if code is not None:
        history.record_failure(error, code)
    record = restart_backoff.read(path)
    assert record is not None
    os.utime(path, (record.started + lived_s, record.started + lived_s))
    return history


def test_short_lives_in_a_row_back_off_and_then_give_up(path):
    delays = [crash(path, 1.0).delay_s for _ in range(8)]
    assert delays == [0.0, 0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    last = CrashHistory(path, 8)
    assert last.too_many and last.crashes == 8
    assert last.last_error == "it was killed, or exited without an error message"


def test_long_life_or_clean_end_resets_the_crash_count(path):
    for _ in range(4):
        crash(path, 1.0)
    crash(path, 21.0)
    assert CrashHistory(path, 8).crashes == 0
    crash(path, 1.0)
    assert CrashHistory(path, 8).crashes == 1
    history = CrashHistory(path, 8)
    history.record_start()
    history.record_clean_exit()
    assert CrashHistory(path, 8).crashes == 0


def test_starts_are_counted_however_they_end(path):
    counted = []
    for end in ("killed", "failed", "ended"):
        history = CrashHistory(path, 8)
        counted.append(history.starts)
        history.record_start()
        if end == "failed":
            history.record_failure("x", ExitCode.CRASH)
        elif end == "ended":
            history.record_clean_exit()
    assert counted == [0, 1, 2] and CrashHistory(path, 8).starts == 3


def test_record_of_an_older_apex_counts_as_one_start(path):
    path.write_text('{"started": 1.0, "epoch": 5, "clean": true}')
    assert CrashHistory(path, 8).starts == 1


def test_three_out_of_memory_ends_give_up_whatever_their_age(path):
    for count in range(3):
        assert not CrashHistory(path, 8).too_many and CrashHistory(path, 8).crashes == count
        crash(path, 500.0, ExitCode.OUT_OF_MEMORY, "8 GiB wanted")
    assert CrashHistory(path, 8).too_many and CrashHistory(path, 8).last_error == "8 GiB wanted"


def test_giving_up_is_recorded_and_the_next_start_counts_from_zero(path):
    crash(path, 1.0, ExitCode.GAVE_UP, "crashed 8 times")
    record = restart_backoff.read(path)
    assert record is not None and record.gave_up and record.error == "crashed 8 times"
    assert CrashHistory(path, 8).crashes == 0


def test_crashes_are_counted_on_a_full_disk_too(path, tmp_path):
    crash(path, 1.0)
    tmp_path.joinpath("disk").mkdir()
    disk = tmp_path / "disk"
    if not mount_tmpfs(disk, 1):
        pytest.skip("only root may mount a file system here")
    try:
        here = disk / "learner.json"
        crash(here, 1.0)
        fill(disk / "filler")
        for _ in range(2):
            crash(here, 1.0, ExitCode.CRASH, "no room")
        assert CrashHistory(here, 8).crashes == 3 and CrashHistory(here, 8).last_error == "no room"
    finally:
        unmount(disk)


def test_epochs_increase_when_the_clock_goes_back(path):
    epochs = [crash(path, 1.0, wall_clock_ns=lambda now=now: now).epoch for now in (1000, 1000, 7)]
    assert epochs == [1000, 1001, 1002]


def test_damaged_record_is_ignored(path):
    path.write_bytes(b"{nonsense")
    assert restart_backoff.read(path) is None and CrashHistory(path, 8).crashes == 0


def test_out_of_device_memory_raises_its_own_error():
    expected = pytest.raises(DeviceMemoryError, match=r"8 GiB.*learner\.batch_size")
    with expected, process_tuning.memory_errors():
        raise torch.OutOfMemoryError("tried to allocate 8 GiB.")
    assert DeviceMemoryError.exit_code == 81


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
def test_clock_step_does_not_change_a_daemons_age(path, step_s):
    wall_clock = Clock(time.time())
    history = CrashHistory(path, 8, lambda: int(wall_clock() * 1e9))
    history.record_start()
    wall_clock.move(step_s)
    history.record_age()
    record = restart_backoff.read(path)
    assert record is not None
    assert path.stat().st_mtime - record.started == pytest.approx(0.0, abs=0.5)
    later = CrashHistory(path, 8)
    assert later.crashes == 1 and later.epoch > history.epoch


def test_hangs_in_a_row_are_counted_and_kept_with_their_reason(path):
    def hang(lived_s: float) -> int:
        history = CrashHistory(path, 8, watchdog_s=60.0)
        history.record_start()
        again = restart_backoff.hangs_again(path, 60.0)
        history.record_failure("hung in the reset of environment 3", ExitCode.HANG)
        record = restart_backoff.read(path)
        assert record is not None
        os.utime(path, (record.started + lived_s, record.started + lived_s))
        return record.hangs if again else -record.hangs

    assert [hang(61.0), hang(61.0), hang(61.0), hang(3600.0)] == [0, -1, 2, 3]
    assert hang(61.0) == -1  # it worked for an hour in between
    CrashHistory(path, 8, watchdog_s=60.0).record_start()
    record = restart_backoff.read(path)
    assert record is not None
    assert (record.hangs, record.error) == (2, "hung in the reset of environment 3")
    CrashHistory(path, 8).record_clean_exit()
    assert hang(61.0) == 0
