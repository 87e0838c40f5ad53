"""Optimizer step with learning rate schedule, gradient clipping and state for checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apex.config.sections import AlgorithmConfig, Decay, NonNegativeInt, PositiveFloat, UnitFloat
from apex.networks.full_precision import full_precision
from apex.ops.rmsprop import RMSProp

log = logging.getLogger("apex.learner")

ZERO_RATE = (
    "update %d: the learning rate is 0, nothing is learned from here on "
    "(algorithm.learning_rate_decay_steps = %d, algorithm.final_learning_rate_fraction = 0). "
    "To continue learning, stop the run with `apex stop` and resume it with `apex run --resume "
    "--set algorithm.final_learning_rate_fraction=0.1`"
)


class OptimizerConfig(AlgorithmConfig, frozen=True):
    """The part of an `[algorithm]` section about the optimizer."""

    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    """`adam`, or `rmsprop` as in the papers (TensorFlow's form): no momentum, epsilon inside the
    square root, mean square initialised to 1."""
    learning_rate: PositiveFloat = 0.00025 / 4
    """Learning rate at the first learner step."""
    learning_rate_decay_steps: NonNegativeInt = 0
    """Learner steps over which the learning rate falls linearly to `final_learning_rate_fraction`;
    0: it is constant. The run continues after them; only the `[run]` section ends it."""
    final_learning_rate_fraction: UnitFloat = 0.1
    """Fraction of `learning_rate` used after `learning_rate_decay_steps`. With 0 nothing is
    learned after them: the learner logs a warning and `apex status` shows an alarm."""
    rmsprop_decay: Decay = 0.95
    """Decay per learner step of RMSProp's moving averages of the gradient and of its square."""
    rmsprop_centered: bool = True
    """Divide by the gradient's standard deviation (centered RMSProp) instead of its root mean
    square."""
    optimizer_epsilon: PositiveFloat = 1.5e-7
    """Constant for numerical stability, added inside the square root (RMSProp) or after it
    (Adam)."""
    max_gradient_norm: PositiveFloat = 40.0
    """Gradients with a larger L2 norm are scaled down to this norm."""


class Optimization:
    """Optimizer of some parameters. Steps whose gradient is not finite are skipped.

    `step` never waits for the device: the check whether the gradient is finite runs there.

    Args:
        parameters: the parameters to optimize, or a module to optimize all parameters of.
        config: the optimizer's configuration.
    """

    def __init__(
        self, parameters: nn.Module | Iterable[nn.Parameter], config: OptimizerConfig
    ) -> None:
        if isinstance(parameters, nn.Module):
            parameters = parameters.parameters()
        self.parameters = list(parameters)
        self._config = config
        device = self.parameters[0].device
        # Fused Adam takes a float64 learning rate on a CPU and a float32 one on a GPU.
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        self.learning_rate = torch.zeros((), dtype=dtype, device=device)
        """The learning rate of the current update, set by `schedule`."""
        self.skipped = torch.zeros((), device=device)
        """Number of skipped steps."""
        self.optimizer = self._make_optimizer()
        self._use_scheduled_rate()
        self._warned_of_zero_rate = False

    def _make_optimizer(self) -> torch.optim.Adam | RMSProp:
        config = self._config
        if config.optimizer == "adam":
            on_gpu = self.parameters[0].device.type == "cuda"
            adam = torch.optim.Adam(
                self.parameters,
                eps=config.optimizer_epsilon,
                fused=True,
                capturable=on_gpu,  # by a CUDA graph
            )
            # It warns when a capturable optimizer steps eagerly, as it does before a capture.
            vars(adam)["_warned_capturable_if_run_uncaptured"] = True
            return adam
        return RMSProp(
            self.parameters,
            self.learning_rate,
            config.rmsprop_decay,
            config.optimizer_epsilon,
            centered=config.rmsprop_centered,
        )

    def rate_at(self, updates: int) -> float:
        """The learning rate after `updates` updates."""
        config = self._config
        if not config.learning_rate_decay_steps:
            return config.learning_rate
        decayed = min(1.0, updates / config.learning_rate_decay_steps)
        return config.learning_rate * (1.0 - decayed * (1.0 - config.final_learning_rate_fraction))

    def schedule(self, updates: int) -> None:
        """Set the learning rate of the next update, given the number of updates so far."""
        rate = self.rate_at(updates)
        if rate == 0.0 and not self._warned_of_zero_rate:
            self._warned_of_zero_rate = True
            log.warning(ZERO_RATE, updates, self._config.learning_rate_decay_steps)
        self.learning_rate.fill_(rate)

    def step(self, loss: Tensor) -> dict[str, Tensor]:
        """Take one step down the gradient of a loss; returns the step's metrics."""
        self.optimizer.zero_grad(set_to_none=True)
        with full_precision(loss.device):
            loss.backward()  # type: ignore[no-untyped-call]
            norm = nn.utils.clip_grad_norm_(self.parameters, self._config.max_gradient_norm)
            skip = 1.0 - torch.isfinite(norm).float()
            self.optimizer.found_inf = skip  # type: ignore[union-attr]
            self.optimizer.step()
        self.skipped += skip
        return {
            "skipped_updates": self.skipped.clone(),
            "learning_rate": self.learning_rate.clone(),
            "gradient_norm": norm.detach(),
        }

    def tensors(self) -> dict[str, list[Tensor]]:
        """All tensors that a step changes besides the parameters, by name."""
        found = {"skipped": [self.skipped]}
        for state in self.optimizer.state.values():
            for name, tensor in state.items():
                found.setdefault(name, []).append(tensor)
        return found

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's averages and the number of skipped steps."""
        return {
            "optimizer": {"state": self.optimizer.state_dict()["state"]},
            "optimizer_name": self._config.optimizer,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises `ValueError` if the optimizer differs."""
        if state["optimizer_name"] != self._config.optimizer:
            raise ValueError(
                f"its optimizer is '{state['optimizer_name']}', but algorithm.optimizer is "
                f"'{self._config.optimizer}'"
            )
        # Only the averages are restored; settings come from the current configuration.
        settings = self.optimizer.state_dict()["param_groups"]
        averages = state["optimizer"]["state"]
        self.optimizer.load_state_dict({"state": averages, "param_groups": settings})
        self._use_scheduled_rate()
        self.skipped.fill_(float(state["skipped"]))

    def _use_scheduled_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
