"""Torch, the GPU and its driver: whether what is there is what torch can use."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from apex.doctor.findings import Finding
from apex.host import hardware

PCI_DEVICES = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY_CLASSES = "0x10de", ("0x0300", "0x0302")


class GpuFacts(NamedTuple):
    """What the machine and torch say."""

    cards: int
    """NVIDIA cards on the bus, with or without a driver."""
    driver: tuple[int, int] | None
    """The newest CUDA that the driver can run; None without a driver."""
    visible: bool
    """Whether the driver shows this process a device."""
    hidden: bool
    """Whether `CUDA_VISIBLE_DEVICES` hides all of them."""
    torch: str
    """Its version."""
    build: str | None
    """The CUDA that torch was built for, such as `12.8`; None: a CPU build."""
    usable: bool
    """Whether torch can use a device."""


def facts() -> GpuFacts:
    """Ask the bus, the driver and torch. Raises `ImportError` without torch."""
    import torch

    return GpuFacts(
        cards=_cards(PCI_DEVICES),
        driver=_driver_cuda(),
        visible=hardware.has_gpu(),
        hidden=os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"),
        torch=torch.__version__,
        build=torch.version.cuda,
        usable=torch.cuda.is_available(),
    )


def _cards(devices: Path) -> int:
    """NVIDIA's display controllers on the PCI bus."""
    found = 0
    for folder in devices.glob("*"):
        try:
            vendor, kind = ((folder / name).read_text() for name in ("vendor", "class"))
        except OSError:
            continue
        found += vendor.strip() == NVIDIA and kind.startswith(DISPLAY_CLASSES)
    return found


def _driver_cuda() -> tuple[int, int] | None:
    """The CUDA version of the driver's library."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def check_gpu(gpu: GpuFacts, device: str) -> Iterator[Finding]:
    """Whether torch can use the GPU that is there, or that the configuration asks for.

    Args:
        gpu: what there is.
        device: `learner.device` of what is to run.
    """
    kind = f"built for CUDA {gpu.build}" if gpu.build else "a CPU build"
    torch = f"torch {gpu.torch}, {kind}"
    if gpu.usable:
        yield Finding("torch", "ok", f"{torch}, which can use the GPU")
        return
    wanted = device.startswith("cuda")
    reason, remedy = _why_not(gpu)
    if not remedy and not wanted:
        yield Finding("torch", "ok", f"{torch}; {reason}: training on the CPU")
        return
    yield Finding(
        "torch",
        "problem" if wanted else "warning",
        f"{torch}; {reason}",
        f"learner.device = {device!r}" if wanted else "the GPU that is there is used",
        remedy or "leave learner.device at 'auto', or run on a machine with a GPU",
    )


def _why_not(gpu: GpuFacts) -> tuple[str, str]:
    """Why torch uses no GPU, and the remedy; an empty one where there is nothing to use."""
    if gpu.hidden:
        return "CUDA_VISIBLE_DEVICES hides every GPU", ""
    if not gpu.cards and not gpu.visible:
        return "no GPU here", ""
    if gpu.driver is None:
        return f"{gpu.cards} NVIDIA card(s) without a driver", "install NVIDIA's driver"
    if gpu.build is None:
        return (
            "a GPU is there, which this build cannot use",
            "install a CUDA build of torch, in the version that constraints.txt names: "
            "`pip install --force-reinstall torch==VERSION`",
        )
    driver = "the driver runs CUDA up to {}.{}".format(*gpu.driver)
    if gpu.driver[0] < int(gpu.build.partition(".")[0]):  # within a major version they mix
        return driver, f"a driver for CUDA {gpu.build} or newer, or a torch built for an older one"
    return (
        f"{driver}, and yet torch finds no device",
        "`python -c 'import torch; torch.zeros(1).cuda()'` says why; in a container, give it "
        "the GPU (--gpus all)",
    )
