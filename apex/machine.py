"""What this machine offers a process: cores by affinity and quota, memory, a GPU."""

from __future__ import annotations

import ctypes.util
import os
from pathlib import Path


def cores() -> int:
    """Whole cores that this process may use, by CPU affinity and the cgroup's quota."""
    available = len(os.sched_getaffinity(0))
    for quota_file in _cgroup_files("cpu.max"):
        quota, _, period = quota_file.read_text().strip().partition(" ")
        if quota != "max":
            available = min(available, max(1, int(quota) // int(period)))
    return available


def memory_bytes() -> int:
    """Bytes of memory that this process may use, by the machine and the cgroup's limit."""
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit_file in _cgroup_files("memory.max"):
        limit = limit_file.read_text().strip()
        if limit != "max":
            available = min(available, int(limit))
    return available


def has_gpu() -> bool:
    """Whether a CUDA device is there, asked of the driver (importing torch takes seconds)."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    try:
        driver = ctypes.CDLL(ctypes.util.find_library("cuda") or "libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
        and count.value > 0
    )


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
