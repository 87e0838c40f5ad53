"""How a process computes with torch: threads, devices, and memory that is kept."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from apex.errors import ConfigError, DeviceMemoryError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST_MMAP_THRESHOLD = 32 << 20
"""glibc takes no larger one."""
KEPT_BYTES = 512 << 20
GROWTH_BYTES = 16 << 20


def set_up(threads: int) -> None:
    """Compute with so many threads in this process, for as long as it lives."""
    torch.set_num_threads(threads)
    _keep_freed_memory()


def pick_device(name: str, setting: str = "learner.device") -> torch.device:
    """The device that a setting names; a GPU then multiplies in TF32. Raises `ConfigError`."""
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        device = _named_device(name, setting)
    if device.type == "cuda":  # convolutions do so by themselves
        torch.set_float32_matmul_precision("high")
    return device


def _named_device(name: str, setting: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"{setting} = '{name}': {error}") from None
    return device


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn torch's error for a device without memory left into `DeviceMemoryError`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"{error} Lower learner.batch_size or learner.prefetch, or end what else uses "
            "the device"
        ) from error


def _keep_freed_memory() -> None:
    """Let malloc keep what is freed, where the C library is glibc.

    By default it hands each freed tensor of a few MiB back to the kernel and asks for it again at
    the next update; the page faults cost a CPU learner with small networks a quarter of its time.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_TOP_PAD, GROWTH_BYTES)
