"""What a GPU can do at most: arithmetic, memory, launches, copies."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

MATRIX = 8192
LAUNCHES = 2000
BATCH_BYTES = 512 * 7 * 84 * 84
"""Bytes of the frames of 512 transitions of Pong."""
GIB = 1 << 30


def _seconds(work: Callable[[], object], repetitions: int = 10) -> float:
    """Seconds of the device for one call."""
    for _ in range(3):
        work()
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    began.record()
    for _ in range(repetitions):
        work()
    ended.record()
    torch.cuda.synchronize()
    return float(began.elapsed_time(ended)) / repetitions / 1e3


def ceilings(device: torch.device) -> dict[str, float]:
    """Measure a CUDA device's rates; the names end with their units."""
    return {**_computing(device), **_copying(device)}


def _computing(device: torch.device) -> dict[str, float]:
    left, right = (torch.randn(MATRIX, MATRIX, device=device) for _ in range(2))
    operations = 2 * MATRIX**3 / 1e12
    torch.set_float32_matmul_precision("high")
    tf32 = operations / _seconds(lambda: left @ right)
    left, right = left.bfloat16(), right.bfloat16()
    bfloat16 = operations / _seconds(lambda: left @ right)
    source, target = (torch.empty(GIB, dtype=torch.uint8, device=device) for _ in range(2))
    memory = 2 * GIB / _seconds(lambda: target.copy_(source)) / 1e12
    one = torch.zeros(1, device=device)
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(LAUNCHES):
        one.add_(1)
    launch = (time.perf_counter() - began) / LAUNCHES
    torch.cuda.synchronize()
    return {
        "tf32_tflops": round(tf32, 1),
        "bfloat16_tflops": round(bfloat16, 1),
        "memory_tb_s": round(memory, 2),
        "launch_us": round(1e6 * launch, 2),
    }


def _copying(device: torch.device) -> dict[str, float]:
    host = torch.randint(0, 256, (BATCH_BYTES,), dtype=torch.uint8)
    pinned, target = host.pin_memory(), torch.empty(BATCH_BYTES, dtype=torch.uint8, device=device)
    from_pinned = BATCH_BYTES / _seconds(lambda: target.copy_(pinned, non_blocking=True)) / 1e9
    from_pageable = BATCH_BYTES / _seconds(lambda: target.copy_(host)) / 1e9
    began = time.perf_counter()
    for _ in range(10):
        host.pin_memory()
    pinning = BATCH_BYTES * 10 / (time.perf_counter() - began) / 1e9
    return {
        "from_pinned_gb_s": round(from_pinned, 1),
        "from_pageable_gb_s": round(from_pageable, 1),
        "pin_memory_gb_s": round(pinning, 1),
    }
