"""Check what a learner on a CUDA device needs: the card, its memory, pinned memory, a compiler.

The sizes are estimates; none was compared with a GPU yet. `/dev/shm` is not checked, since batches
come through sockets.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import shutil
from collections.abc import Iterator
from typing import NamedTuple

import torch

from apex.config.sections import Config
from apex.data.schema import Schema
from apex.doctor.findings import Finding, State, format_bytes
from apex.doctor.memory import PARAMETERS_IN_LEARNER, batch_bytes, compared
from apex.launch.open_files import limits_of

CONTEXT_BYTES = 600e6
"""Device memory of CUDA itself, of the libraries and of their workspaces; estimated."""
ACTIVATION_COPIES = 3
"""Copies of the activations: with gradients, their gradients, other passes; estimated."""
COMPILERS = ("cc", "gcc", "clang")
"""C compilers that triton looks for, besides the one that CC names."""


class CudaFacts(NamedTuple):
    """What torch reports about the learner's device."""

    name: str
    capability: tuple[int, int]
    """Compute capability, such as (9, 0)."""
    built_for: tuple[str, ...]
    """Architectures that torch was built for, such as `sm_90`, or `compute_90`, which newer cards
    compile at first use."""
    free_bytes: int
    total_bytes: int
    locked_bytes: int | None
    """Limit of locked memory (`ulimit -l`); None: no limit."""
    triton: bool
    compiler: str | None
    """Path of a C compiler."""


def facts(device: str) -> CudaFacts:
    """Query torch and the system.

    Args:
        device: `learner.device`, which must be usable; `auto` is the first CUDA device.
    """
    index = torch.device("cuda" if device == "auto" else device).index or 0
    free, total = torch.cuda.mem_get_info(index)
    return CudaFacts(
        name=torch.cuda.get_device_name(index),
        capability=torch.cuda.get_device_capability(index),
        built_for=tuple(torch.cuda.get_arch_list()),
        free_bytes=free,
        total_bytes=total,
        locked_bytes=limits_of(resource.RLIMIT_MEMLOCK).soft,
        triton=importlib.util.find_spec("triton") is not None,
        compiler=find_compiler(),
    )


def find_compiler() -> str | None:
    """Path of a C compiler; None if there is none."""
    names = (*os.environ.get("CC", "").split()[:1], *COMPILERS)
    return next(filter(None, map(shutil.which, names)), None)


def check_cuda_learner(
    config: Config, schema: Schema | None, parameters: int, activations: int, cuda: CudaFacts
) -> Iterator[Finding]:
    """Run all checks of this module.

    Args:
        config: the suite's configuration.
        schema: schema of its items; None: unknown, so that memory is not estimated.
        parameters: bytes of the network's parameters.
        activations: bytes of the network's activations for one item.
        cuda: facts about the device.
    """
    yield from check_card(cuda)
    if schema is None:
        yield Finding("GPU memory", "note", "not estimated: the environment cannot be made")
    else:
        needed = device_memory_needed(config, schema, parameters, activations)
        remedy = "end other programs on the GPU, or lower learner.batch_size or learner.prefetch"
        yield compared("GPU memory", needed, cuda.free_bytes, f"free on {cuda.name}", remedy)
        yield from check_pinned(config.learner.decode_threads * batch_bytes(config, schema), cuda)
    yield from check_compiler(config.learner.execution, cuda)


def check_card(cuda: CudaFacts) -> Iterator[Finding]:
    """Check that torch was built for the card's compute capability."""
    capability = "{}.{}".format(*cuda.capability)
    found = f"{cuda.name}, {format_bytes(cuda.total_bytes)}, compute capability {capability}"
    built_for = ", ".join(cuda.built_for)
    if any(_runs_on(architecture, cuda.capability) for architecture in cuda.built_for):
        yield Finding("GPU", "ok", found, f"torch is built for {built_for}")
        return
    remedy = "install a build of torch for this card, or set learner.device = 'cpu' (--device cpu)"
    yield Finding("GPU", "problem", found, f"one that torch is built for: {built_for}", remedy)


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Whether code for an architecture runs on a card.

    `sm_86` runs on all cards 8.6 and newer of the same major number, `compute_86` on all newer.
    """
    kind, _, digits = architecture.partition("_")
    digits = digits.rstrip("af")  # sm_90a
    if not digits.isdecimal():
        return False
    major, minor = int(digits[:-1]), int(digits[-1])
    if kind == "sm":
        return major == capability[0] and minor <= capability[1]
    return (major, minor) <= capability


def device_memory_needed(
    config: Config, schema: Schema, parameters: int, activations: int
) -> dict[str, int]:
    """Bytes of device memory that a learner needs, by part; see docs/MEMORY.md.

    Args:
        config: the suite's configuration.
        schema: schema of its items.
        parameters: bytes of the network's parameters.
        activations: bytes of the network's activations for one item.
    """
    batch, computed = batch_bytes(config, schema), config.learner.batch_size * activations
    processes = 1 + (config.central and config.inference_device != "cpu")
    processes += config.evaluator.enabled and config.evaluator.device != "cpu"
    needed = {
        "parameters": PARAMETERS_IN_LEARNER * parameters,
        "activations": ACTIVATION_COPIES * computed,
        "batches": (config.learner.prefetch + 1) * batch,
        "CUDA": processes * CONTEXT_BYTES,
    }
    if config.learner.execution != "eager":
        needed["recorded update"] = ACTIVATION_COPIES * computed + batch
    return {name: int(count) for name, count in needed.items()}


def check_pinned(needed: float, cuda: CudaFacts) -> Iterator[Finding]:
    """Compare the pinned memory of the batches with the limit of locked memory.

    A note at most: NVIDIA's driver usually pins memory without regard to that limit.
    """
    expected = f"{format_bytes(needed)} for batches on their way to the GPU"
    limit = cuda.locked_bytes
    if limit is None or limit >= needed:
        found = "no limit" if limit is None else format_bytes(limit)
        yield Finding("pinned memory", "ok", found, expected)
        return
    remedy = "only if the learner says that it cannot allocate pinned memory: ulimit -l unlimited"
    yield Finding("pinned memory", "note", f"limit {format_bytes(limit)}", expected, remedy)


def check_compiler(execution: str, cuda: CudaFacts) -> Iterator[Finding]:
    """Check what `learner.execution = "compile"` needs.

    Args:
        execution: `learner.execution`.
        cuda: facts about the device.
    """
    missing = [] if cuda.triton else ["triton"]
    missing += [] if cuda.compiler else ["a C compiler"]
    expected = 'triton and a C compiler, for learner.execution = "compile"'
    if not missing:
        yield Finding("compiler", "ok", f"triton, and {cuda.compiler}")
        return
    found = f"no {' and no '.join(missing)}"
    remedy = 'install them (gcc), or leave learner.execution at "auto"'
    state: State = "problem" if execution == "compile" else "note"
    yield Finding("compiler", state, found, expected, remedy)
