"""The machine's resources for this process: cores, memory, threads and GPUs."""

from __future__ import annotations

import ctypes.util
import os
import platform
from functools import cache
from pathlib import Path
from typing import NamedTuple

MEMORY_FACTS = Path("/proc/meminfo")


class Machine(NamedTuple):
    """The resources that this process may use."""

    cores: int
    memory_bytes: int
    has_gpu: bool
    cpu: str
    """CPU model, for display."""
    gpus: tuple[str, ...]
    """GPU models, for display."""
    available_bytes: int | None = None
    """Bytes of memory that are free or reclaimable now; None: unknown."""


def this_machine() -> Machine:
    """The machine that this process runs on."""
    models = tuple(gpu_models())
    return Machine(
        cores(), memory_bytes(), has_gpu(), cpu_model(), models, available_memory_bytes()
    )


def cpu_model() -> str:
    """The CPU model from `/proc/cpuinfo`, or the architecture if it names none."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def cores() -> int:
    """Number of cores that this process may use: CPU affinity and cgroup quota, rounded down."""
    available = len(os.sched_getaffinity(0))
    for quota_file in _cgroup_files("cpu.max"):
        quota, _, period = quota_file.read_text().strip().partition(" ")
        if quota != "max":
            available = min(available, max(1, int(quota) // int(period)))
    quota_us, period_us = _v1("cpu", "cpu.cfs_quota_us"), _v1("cpu", "cpu.cfs_period_us")
    if quota_us and period_us and quota_us > 0:
        available = min(available, max(1, quota_us // period_us))
    return available


def memory_bytes() -> int:
    """Bytes of memory that this process may use: the machine's memory or the cgroup's limit."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit_file in _cgroup_files("memory.max"):
        limit = limit_file.read_text().strip()
        if limit != "max":
            available = min(available, int(limit))
    return min(available, _v1("memory", "memory.limit_in_bytes") or available)


def available_memory_bytes() -> int:
    """Bytes of memory that are free or reclaimable now, on the machine and in the cgroup."""
    available = 1024 * _named_number(MEMORY_FACTS.read_text(), "MemAvailable:")
    for limit_file in _cgroup_files("memory.max"):
        limit, folder = limit_file.read_text().strip(), limit_file.parent
        if limit != "max":
            used = int((folder / "memory.current").read_text())
            cached = _named_number((folder / "memory.stat").read_text(), "inactive_file")
            available = min(available, int(limit) - used + cached)
    limit_v1, used_v1 = (_v1("memory", f"memory.{n}_in_bytes") for n in ("limit", "usage"))
    if limit_v1 is not None and used_v1 is not None:
        cached = _named_number(_v1_text("memory", "memory.stat") or "", "total_inactive_file")
        available = min(available, limit_v1 - used_v1 + cached)
    return max(0, available)


def _named_number(text: str, name: str) -> int:
    """The number after `name` in a text with a name and a number in each line; 0 if missing."""
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    return 0


def tasks_left() -> int | None:
    """Number of threads that the cgroup still allows to start; None if it has no limit."""
    found = [
        (limit_file.read_text().strip(), (limit_file.parent / "pids.current").read_text())
        for limit_file in _cgroup_files("pids.max")
    ]
    limit_v1, used_v1 = _v1_text("pids", "pids.max"), _v1_text("pids", "pids.current")
    if limit_v1 is not None and used_v1 is not None:
        found.append((limit_v1.strip(), used_v1))
    return min((int(limit) - int(used) for limit, used in found if limit != "max"), default=None)


def has_gpu() -> bool:
    """Whether the driver reports a CUDA device. Avoids importing torch, which takes seconds.

    torch may be unable to use it: `torch.cuda.is_available()` is false then.
    """
    driver = _cuda_driver()
    return driver is not None and _gpu_count(driver) > 0


def gpu_models() -> list[str]:
    """The model of each CUDA device that the driver reports."""
    driver, names = _cuda_driver(), []
    for index in range(0 if driver is None else _gpu_count(driver)):
        device, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
        if (
            driver is not None
            and driver.cuDeviceGet(ctypes.byref(device), index) == 0
            and driver.cuDeviceGetName(name, len(name), device) == 0
        ):
            names.append(name.value.decode(errors="replace"))
    return names


def _cuda_driver() -> ctypes.CDLL | None:
    """The initialised driver; None without one or if CUDA_VISIBLE_DEVICES hides all GPUs."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return None
    driver = _cuda_library()
    return driver if driver is not None and driver.cuInit(0) == 0 else None


@cache
def _cuda_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(ctypes.util.find_library("cuda") or "libcuda.so.1")
    except OSError:
        return None


def _gpu_count(driver: ctypes.CDLL) -> int:
    count = ctypes.c_int(0)
    return count.value if driver.cuDeviceGetCount(ctypes.byref(count)) == 0 else 0


def _v1(controller: str, name: str) -> int | None:
    """A number in a file of this process's version 1 cgroup; None if there is none."""
    try:
        return int(_v1_text(controller, name) or "")
    except ValueError:
        return None


def _v1_text(controller: str, name: str) -> str | None:
    """The text of a file of this process's version 1 cgroup; None if there is none."""
    try:
        entries = Path("/proc/self/cgroup").read_text().splitlines()
        for _, controllers, path in (entry.split(":", 2) for entry in entries):
            if controller in controllers.split(","):
                base = Path("/sys/fs/cgroup") / controller
                own = base / path.lstrip("/") / name
                return (own if own.is_file() else base / name).read_text()
    except (OSError, ValueError):
        pass
    return None


def _cgroup_files(name: str) -> list[Path]:
    """The files `name` of this process's version 2 cgroup and of its ancestors."""
    try:
        entries = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    root = Path("/sys/fs/cgroup")
    found = []
    for entry in entries:
        if entry.startswith("0::"):
            folder = root / entry[3:].lstrip("/")
            found = [f / name for f in (folder, *folder.parents) if f.is_relative_to(root)]
    return [path for path in found if path.is_file()]
