"""CPU cores of the training thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from apex.daemons import cpu_affinity
from apex.host import hardware
from apex.host.files import FileLock
from apex.launch import prepare
from apex.runs.directory import RunDirectory

Reserve = Callable[..., tuple[int, ...]]


@pytest.fixture
def affinity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, set[int]]:
    """Fake affinity calls of a process that may use the cores 2, 3 and 5."""
    state = {"allowed": {2, 3, 5}}
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(state["allowed"]))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, to: state.update(allowed=set(to)))
    monkeypatch.setattr(hardware, "cores", lambda: 3)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv(cpu_affinity.LEARNER_CORES, "")
    return state


@pytest.fixture
def reserve(affinity: dict[str, set[int]], tmp_path: Path) -> Reserve:
    def do(*settings: str) -> tuple[int, ...]:
        config = prepare.preset_config("cartpole", settings)
        cpu_affinity.reserve(RunDirectory(tmp_path / "run"), config)
        named = os.environ.get(cpu_affinity.LEARNER_CORES, "")
        return tuple(int(core) for core in named.split(",") if core)

    return do


def test_first_free_core_is_reserved_and_removed_from_the_affinity(reserve, affinity):
    assert reserve() == (2,) and affinity["allowed"] == {3, 5}


def test_cores_of_the_run_include_the_reserved_one(reserve, affinity, monkeypatch):
    monkeypatch.setattr(hardware, "cores", lambda: len(affinity["allowed"]))
    assert cpu_affinity.of_run() == 3
    reserve()
    assert hardware.cores() == 2 and cpu_affinity.of_run() == 3


def test_training_thread_moves_to_the_reserved_cores(reserve, affinity):
    reserve("learner.torch_threads=2")
    assert affinity["allowed"] == {5}
    cpu_affinity.take()
    assert affinity["allowed"] == {2, 3}


def test_core_of_another_run_is_skipped_until_it_is_free(reserve, affinity, tmp_path):
    folder = tmp_path / f"apex-{os.getuid()}"
    folder.mkdir(mode=0o700)
    other = FileLock(folder / "core_2.lock")
    assert other.acquire()
    assert reserve() == (3,) and affinity["allowed"] == {2, 5}
    other.release()
    affinity["allowed"] = {2, 3, 5}
    assert reserve() == (2,)


@pytest.mark.parametrize(
    "settings", [["learner.pin=false"], ["learner.torch_threads=3"]], ids=["off", "all_threads"]
)
def test_no_core_is_reserved_by_these_settings(reserve, affinity, settings, monkeypatch):
    monkeypatch.setenv(cpu_affinity.LEARNER_CORES, "3")  # left by an engine that started this one
    assert reserve(*settings) == () and affinity["allowed"] == {2, 3, 5}
    cpu_affinity.take()
    assert affinity["allowed"] == {2, 3, 5}


def test_no_core_is_reserved_with_one_core_or_a_quota(reserve, affinity, monkeypatch):
    monkeypatch.setattr(hardware, "cores", lambda: 2)
    assert reserve() == ()
    affinity["allowed"] = {5}
    monkeypatch.setattr(hardware, "cores", lambda: 1)
    assert reserve() == () and affinity["allowed"] == {5}


def test_no_lock_is_held_when_too_few_cores_are_free(reserve, tmp_path):
    folder = tmp_path / f"apex-{os.getuid()}"
    folder.mkdir(mode=0o700)
    others = [FileLock(folder / f"core_{core}.lock") for core in (2, 5)]
    assert all(lock.acquire() for lock in others)
    assert reserve("learner.torch_threads=2") == ()
    assert FileLock(folder / "core_3.lock").acquire()


def test_missing_reserved_core_is_logged_and_ignored(monkeypatch, caplog):
    monkeypatch.setenv(cpu_affinity.LEARNER_CORES, "100000")
    before = os.sched_getaffinity(0)
    cpu_affinity.take()
    assert os.sched_getaffinity(0) == before and "core 100000" in caplog.text
