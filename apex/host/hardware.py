"""What this machine offers a process: cores by affinity and quota, memory, a GPU."""

from __future__ import annotations

import ctypes.util
import os
import platform
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Machine(NamedTuple):
    """What a machine offers to this process."""

    cores: int
    memory_bytes: int
    has_gpu: bool
    cpu: str
    """The model of its cores, for people."""
    gpus: tuple[str, ...]
    """The models of its GPUs, for people."""


def this_machine() -> Machine:
    """Look at the machine that this process runs on."""
    return Machine(cores(), memory_bytes(), has_gpu(), cpu_model(), tuple(gpu_models()))


def cpu_model() -> str:
    """The model of the cores by `/proc/cpuinfo`, or else the architecture."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.machine())


def cores() -> int:
    """Whole cores that this process may use, by CPU affinity and the cgroup's quota."""
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
    """Bytes of memory that this process may use, by the machine and the cgroup's limit."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit_file in _cgroup_files("memory.max"):
        limit = limit_file.read_text().strip()
        if limit != "max":
            available = min(available, int(limit))
    return min(available, _v1("memory", "memory.limit_in_bytes") or available)


def available_memory_bytes() -> int:
    """Bytes that are free now or that the kernel would give back, by machine and cgroup."""
    import psutil  # takes a tenth of a second, and only the doctor asks

    available = int(psutil.virtual_memory().available)
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
    """The number that stands behind a name in a file of such lines; 0 where it is not."""
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    return 0


def tasks_left() -> int | None:
    """Threads that this process's cgroup still lets begin; None where it sets no limit."""
    found = [
        (limit_file.read_text().strip(), (limit_file.parent / "pids.current").read_text())
        for limit_file in _cgroup_files("pids.max")
    ]
    limit_v1, used_v1 = _v1_text("pids", "pids.max"), _v1_text("pids", "pids.current")
    if limit_v1 is not None and used_v1 is not None:
        found.append((limit_v1.strip(), used_v1))
    return min((int(most) - int(used) for most, used in found if most != "max"), default=None)


def has_gpu() -> bool:
    """Whether a CUDA device is there, asked of the driver (importing torch takes seconds)."""
    driver = _cuda_driver()
    return driver is not None and _gpu_count(driver) > 0


def gpu_models() -> list[str]:
    """The model of each CUDA device, asked of the driver."""
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
    """The initialised driver; None where there is none, or this process must not see its GPUs."""
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
    """A number about this process's cgroup of version 1, if there is one."""
    try:
        return int(_v1_text(controller, name) or "")
    except ValueError:
        return None


def _v1_text(controller: str, name: str) -> str | None:
    """A file of this process's cgroup of version 1, if there is one."""
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
    """The file `name` of this process's cgroup (version 2) and of each of its ancestors."""
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
