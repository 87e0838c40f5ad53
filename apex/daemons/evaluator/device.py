"""The device on which evaluations are computed."""

from __future__ import annotations

import logging

import torch

from apex.algos.policy import Policy
from apex.config.sections import Config
from apex.envs.spec import EnvSpec
from apex.host import process_tuning

log = logging.getLogger("apex.daemons.evaluator.device")


def evaluation_device(config: Config, spec: EnvSpec, policy: Policy) -> torch.device:
    """Select the device that `evaluator.device` names.

    `auto` is the learner's GPU for frames, and the CPU for everything else: the networks for
    vectors are faster there, a learner on the CPU leaves the GPU's memory to others, and a policy
    that defines `act` alone may use tensors of the CPU.

    Raises:
        ConfigError: the device cannot be used.
    """
    name = config.evaluator.device
    if name != "auto":
        return process_tuning.pick_device(name, "evaluator.device")
    profits = spec.frame_stack > 0 and policy.decides_later
    if not profits or config.learner.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    device = process_tuning.pick_device(config.learner.device)
    return device if _usable(device) else torch.device("cpu")


def _usable(device: torch.device) -> bool:
    """Whether this process can use a GPU beside the learner; else the log says why not."""
    try:
        torch.zeros(1, device=device)
    except RuntimeError as error:  # such as a GPU that serves one process only, or is full
        log.warning("evaluations run on the CPU, since the GPU cannot be used: %s", error)
        return False
    return True
