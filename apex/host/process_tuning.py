"""Settings of a process that computes with torch: threads, device, memory allocator."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from apex.errors import ConfigError, DeviceMemoryError

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
LARGEST_MMAP_THRESHOLD = 32 << 20
"""Bytes; glibc rejects larger values."""
KEPT_BYTES = 512 << 20
"""Free bytes at the top of the heap that malloc keeps instead of returning to the kernel."""
GROWTH_BYTES = 16 << 20
"""Extra bytes that malloc requests when the heap grows."""


def set_up(threads: int) -> None:
    """Set the number of torch's threads and configure malloc, for the life of the process."""
    torch.set_num_threads(threads)
    _keep_freed_memory()


def pick_device(name: str, setting: str = "learner.device") -> torch.device:
    """Select the torch device that a setting names, and enable TF32 matrix products on a GPU.

    Args:
        name: `auto` (CUDA if available), or a torch device.
        setting: the configuration key, for the error.

    Raises:
        ConfigError: the device does not exist or cannot be used.
    """
    if name == "auto":
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    else:
        device = _named_device(name, setting)
    if device.type == "cuda":  # convolutions use TF32 by default
        torch.set_float32_matmul_precision("high")
    return device


def _named_device(name: str, setting: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"{setting} = '{name}': cannot use this device: {error}") from None
    return device


@contextmanager
def memory_errors() -> Iterator[None]:
    """Convert torch's out-of-memory error to `DeviceMemoryError`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceMemoryError(
            f"{error} Lower learner.batch_size or learner.prefetch, or stop other processes that "
            "use the device"
        ) from error


def _keep_freed_memory() -> None:
    """Make glibc's malloc keep freed memory; no effect with another C library.

    By default malloc returns each freed tensor of a few MiB to the kernel and requests it again at
    the next update; the page faults take a quarter of the time of a CPU learner with small
    networks.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
    mallopt(M_TOP_PAD, GROWTH_BYTES)
