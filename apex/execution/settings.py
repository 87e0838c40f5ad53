"""What `learner.execution` and `learner.precision` select on a device."""

from __future__ import annotations

import logging

import torch

from apex.algos.base import Learner
from apex.config.sections import LearnerConfig
from apex.errors import ConfigError
from apex.execution.execution import Eager, Execution, Graphed
from apex.execution.recorders import CudaGraphs

log = logging.getLogger("apex.learner")


def check_settings(config: LearnerConfig, device: torch.device) -> None:
    """Raise `ConfigError` if the settings need another device.

    Args:
        config: the configuration's `[learner]` section.
        device: the learner's.
    """
    if device.type == "cuda":
        return
    if config.execution in ("graph", "compile"):
        reason = (
            "a graph saves the time that Python needs to start work on a GPU"
            if config.execution == "graph"
            else "compiled networks were slower than eager ones on a CPU in every measurement"
        )
        raise ConfigError(
            f"learner.execution = '{config.execution}' needs a GPU, but the learner runs on "
            f"'{device}': {reason}; expected 'auto' or 'eager'"
        )
    if config.precision == "tf32":
        raise ConfigError(
            f"learner.precision = 'tf32' needs a GPU, but the learner runs on '{device}'; expected "
            "'auto', 'float32' or 'bfloat16'"
        )


def use_precision(precision: str, device: torch.device) -> torch.dtype | None:
    """Set the precision of this process's matrix products; returns autocast's dtype, if any.

    Args:
        precision: `learner.precision`.
        device: the learner's.
    """
    if device.type == "cuda":
        tf32 = precision != "float32"
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
    return torch.bfloat16 if precision == "bfloat16" else None


def make_execution(config: LearnerConfig, learner: Learner) -> Execution:
    """Make what executes a learner's updates.

    Args:
        config: the configuration's `[learner]` section.
        learner: on its device.

    Raises:
        ConfigError: the settings need a GPU.
    """
    check_settings(config, learner.device)
    if config.execution == "eager" or learner.device.type != "cuda":
        return Eager(learner)
    if config.execution == "compile":
        compile_networks(learner)
    return Graphed(
        learner,
        CudaGraphs(learner.device),
        config.batch_size,
        only_if_faster=config.execution == "auto",
    )


def compile_networks(learner: Learner) -> None:
    """Compile the networks at their first use; what cannot be compiled stays as it is."""
    from torch import _dynamo

    _dynamo.config.suppress_errors = True  # a missing C compiler is a warning, not an error
    for module in learner.compiled_modules():
        module.compile(dynamic=False)
    log.info("execution: the networks are compiled at their first updates, which takes a minute")
