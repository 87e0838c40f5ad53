"""How parameters follow their gradient: optimizer, learning rate, clipping, and what is resumed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apex.config.sections import AlgorithmConfig, Decay, NonNegativeInt, PositiveFloat, UnitFloat
from apex.ops.rmsprop import RMSProp

log = logging.getLogger("apex.learner")

ZERO_RATE = (
    "update %d: the learning rate is 0, nothing is learned from here on "
    "(algorithm.learning_rate_decay_steps = %d, algorithm.final_learning_rate_fraction = 0). "
    "`apex stop` ends the run; `apex run --resume --set "
    "algorithm.final_learning_rate_fraction=0.1` after it lets it learn again"
)


class OptimizerConfig(AlgorithmConfig, frozen=True):
    """The part of an `[algorithm]` section that every gradient needs."""

    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    """`rmsprop` is the papers' (TensorFlow's): without momentum, its epsilon inside the root, its
    mean square 1 at the start."""
    learning_rate: PositiveFloat = 0.00025 / 4
    """Of the first learner step."""
    learning_rate_decay_steps: NonNegativeInt = 0
    """Learner steps in which it falls in a straight line to its final fraction; 0: it does not.
    A run goes on after them, for as long as its `[run]` section says."""
    final_learning_rate_fraction: UnitFloat = 0.1
    """Of `learning_rate`, what is left from `learning_rate_decay_steps` on; with 0 nothing is
    learned from there on: the learner's log says so, and `apex status` with an alarm."""
    rmsprop_decay: Decay = 0.95
    """Of both moving averages of RMSProp."""
    rmsprop_centered: bool = True
    """Whether the gradient's mean is taken off its mean square."""
    optimizer_epsilon: PositiveFloat = 1.5e-7
    """Added inside the root (RMSProp) or to it (Adam)."""
    max_gradient_norm: PositiveFloat = 40.0
    """The gradient is shortened to this length."""


class Optimization:
    """Steps of an optimizer down a gradient. A step whose gradient is not finite is skipped.

    Nothing in `step` waits for the device: whether the gradient is finite is decided there.

    Args:
        parameters: to optimize, or the module whose parameters they are.
        config: of the optimizer.
    """

    def __init__(
        self, parameters: nn.Module | Iterable[nn.Parameter], config: OptimizerConfig
    ) -> None:
        if isinstance(parameters, nn.Module):
            parameters = parameters.parameters()
        self.parameters = list(parameters)
        self._config = config
        device = self.parameters[0].device
        # Fused Adam reads a rate of 64 bits on a CPU and of 32 bits on a GPU.
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        self.learning_rate = torch.zeros((), dtype=dtype, device=device)
        """Of this update, as `schedule` has set it."""
        self.skipped = torch.zeros((), device=device)
        """Steps whose gradient was not finite."""
        self.optimizer = self._make_optimizer()
        self._use_scheduled_rate()
        self._said_zero = False

    def _make_optimizer(self) -> torch.optim.Adam | RMSProp:
        config = self._config
        if config.optimizer == "adam":
            return torch.optim.Adam(self.parameters, eps=config.optimizer_epsilon, fused=True)
        return RMSProp(
            self.parameters,
            self.learning_rate,
            config.rmsprop_decay,
            config.optimizer_epsilon,
            centered=config.rmsprop_centered,
        )

    def rate_at(self, updates: int) -> float:
        """The learning rate after a number of updates."""
        config = self._config
        if not config.learning_rate_decay_steps:
            return config.learning_rate
        fallen = min(1.0, updates / config.learning_rate_decay_steps)
        return config.learning_rate * (1.0 - fallen * (1.0 - config.final_learning_rate_fraction))

    def schedule(self, updates: int) -> None:
        """Set the learning rate of the next update, after a number of updates."""
        rate = self.rate_at(updates)
        if rate == 0.0 and not self._said_zero:
            self._said_zero = True
            log.warning(ZERO_RATE, updates, self._config.learning_rate_decay_steps)
        self.learning_rate.fill_(rate)

    def step(self, loss: Tensor) -> dict[str, Tensor]:
        """One step down the gradient of a loss; returns what is logged of it."""
        self.optimizer.zero_grad(set_to_none=True)
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

    def state_dict(self) -> dict[str, Any]:
        """The averages and counts."""
        return {
            "optimizer": {"state": self.optimizer.state_dict()["state"]},
            "optimizer_name": self._config.optimizer,
            "skipped": self.skipped,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`. Raises `ValueError` where that was of another optimizer."""
        if state["optimizer_name"] != self._config.optimizer:
            raise ValueError(
                f"it was trained with the optimizer '{state['optimizer_name']}', "
                f"algorithm.optimizer is '{self._config.optimizer}'"
            )
        # The averages are resumed; learning rate and the like are the configuration's of today.
        settings = self.optimizer.state_dict()["param_groups"]
        averages = state["optimizer"]["state"]
        self.optimizer.load_state_dict({"state": averages, "param_groups": settings})
        self._use_scheduled_rate()
        self.skipped.fill_(float(state["skipped"]))

    def _use_scheduled_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
