"""The device on which evaluations are computed."""

from __future__ import annotations

import torch

from apex.algos.policy import Policy
from apex.config.sections import Config
from apex.envs.spec import EnvSpec
from apex.host import process_tuning


def evaluation_device(config: Config, spec: EnvSpec, policy: Policy) -> torch.device:
    """Select the device that `evaluator.device` names.

    `auto` is the learner's GPU for frames, and the CPU for everything else: the networks for
    vectors are faster there, a learner on the CPU leaves the GPU's memory to others, and a policy
    that defines `act` alone may use tensors of the CPU.

    Raises:
        ConfigError: the device cannot be used.
    """
    name = config.evaluator.device
    if name == "auto":
        profits = spec.frame_stack > 0 and policy.decides_later
        on_gpu = config.learner.device != "cpu" and torch.cuda.is_available()
        name = config.learner.device if profits and on_gpu else "cpu"
    return process_tuning.pick_device(name, "evaluator.device")
