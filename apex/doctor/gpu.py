"""Check torch, the GPU and its driver: whether torch can use the GPU."""

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
    """What the machine and torch report about GPUs."""

    cards: int
    """NVIDIA cards on the PCI bus, with or without a driver."""
    driver: tuple[int, int] | None
    """Newest CUDA version that the driver supports; None without a driver."""
    visible: bool
    """Whether the driver shows this process a device."""
    hidden: bool
    """Whether `CUDA_VISIBLE_DEVICES` hides all devices."""
    torch: str
    """Version of torch."""
    build: str | None
    """CUDA version that torch was built for, such as `12.8`; None: a CPU build."""
    usable: bool
    """Whether torch can use a device."""


def facts() -> GpuFacts:
    """Query the PCI bus, the driver and torch. Raises `ImportError` without torch."""
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
    """Count NVIDIA's display controllers on the PCI bus."""
    found = 0
    for folder in devices.glob("*"):
        try:
            vendor, kind = ((folder / name).read_text() for name in ("vendor", "class"))
        except OSError:
            continue
        found += vendor.strip() == NVIDIA and kind.startswith(DISPLAY_CLASSES)
    return found


def _driver_cuda() -> tuple[int, int] | None:
    """CUDA version of the driver's library; None without one."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    version = ctypes.c_int(0)
    if driver.cuDriverGetVersion(ctypes.byref(version)) != 0:
        return None
    return version.value // 1000, version.value % 1000 // 10


def check_gpu(gpu: GpuFacts, device: str) -> Iterator[Finding]:
    """Check that torch can use the GPU of this machine, or the one that the configuration needs.

    Args:
        gpu: facts about the machine.
        device: `learner.device` of the preset or run.
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
        f"{torch}; {reason}" + ("" if wanted else ": training on the CPU"),
        f"learner.device = {device!r}" if wanted else "torch uses the GPU of this machine",
        remedy or "leave learner.device at 'auto', or run on a machine with a GPU",
    )


def _why_not(gpu: GpuFacts) -> tuple[str, str]:
    """Why torch uses no GPU, and the remedy; an empty remedy if there is no GPU to use."""
    if gpu.hidden:
        return "CUDA_VISIBLE_DEVICES hides every GPU", ""
    if not gpu.cards and not gpu.visible:
        return "no GPU on this machine", ""
    if gpu.driver is None:
        return f"{gpu.cards} NVIDIA card(s) without a driver", "install NVIDIA's driver"
    if gpu.build is None:
        return (
            "this build cannot use the GPU of this machine",
            "install a CUDA build of torch, in the version that constraints.txt names: "
            "`pip install --force-reinstall torch==VERSION`",
        )
    driver = "the driver supports CUDA up to {}.{}".format(*gpu.driver)
    if gpu.driver[0] < int(gpu.build.partition(".")[0]):  # minor versions are compatible
        return (
            driver,
            f"install a driver for CUDA {gpu.build} or newer, or a torch built for an older CUDA",
        )
    return (
        f"{driver}, but torch finds no device",
        "run `python -c 'import torch; torch.zeros(1).cuda()'` to see why; in a container, pass "
        "the GPU to it (--gpus all)",
    )
