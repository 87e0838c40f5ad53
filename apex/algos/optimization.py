"""How a network follows its gradient: optimizer, learning rate, clipping, and what is resumed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apex.config.sections import NonNegativeInt, PositiveFloat, Section, UnitFloat
from apex.ops.optimizers import RMSProp


class OptimizerSection(Section, frozen=True):
    """The part of an `[algorithm]` section that every gradient needs."""

    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    """`rmsprop` is the papers': without momentum, its epsilon inside the root."""
    learning_rate: PositiveFloat = 0.00025 / 4
    """Of the first learner step."""
    learning_rate_decay_steps: NonNegativeInt = 0
    """Learner steps in which it falls in a straight line to its final fraction; 0: it does not."""
    final_learning_rate_fraction: UnitFloat = 0.1
    """Of `learning_rate`, what is left from `learning_rate_decay_steps` on."""
    rmsprop_decay: UnitFloat = 0.95
    """Of both moving averages of RMSProp."""
    rmsprop_centered: bool = True
    """Whether the gradient's mean is taken off its mean square."""
    optimizer_epsilon: PositiveFloat = 1.5e-7
    """Added inside the root (RMSProp) or to it (Adam)."""
    max_gradient_norm: PositiveFloat = 40.0
    """The gradient is shortened to this length."""


class Optimization:
    """Takes steps of an optimizer, but none whose gradient is not finite.

    Args:
        network: whose parameters are optimized.
        config: of the algorithm.
    """

    def __init__(self, network: nn.Module, config: OptimizerSection) -> None:
        self._network = network
        self._config = config
        self._optimizer = _make_optimizer(network, config)
        self.updates = 0
        self.skipped = 0
        """Steps whose gradient was not finite."""

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        config = self._config
        if not config.learning_rate_decay_steps:
            return config.learning_rate
        fallen = min(1.0, self.updates / config.learning_rate_decay_steps)
        return config.learning_rate * (1.0 - fallen * (1.0 - config.final_learning_rate_fraction))

    def step(self, loss: Tensor) -> dict[str, float | Tensor]:
        """One step down the gradient of a loss; gives what is logged of it."""
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self._network.parameters(), self._config.max_gradient_norm)
        rate = self.learning_rate
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        if torch.isfinite(norm):
            self._optimizer.step()
        else:
            self.skipped += 1
        self.updates += 1
        return {
            "skipped_updates": float(self.skipped),
            "learning_rate": rate,
            "gradient_norm": norm,
        }

    def state_dict(self) -> dict[str, Any]:
        """The averages and counts."""
        return {
            "optimizer": self._optimizer.state_dict(),
            "optimizer_name": self._config.optimizer,
            "updates": self.updates,
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
        settings = self._optimizer.state_dict()["param_groups"]
        averages = state["optimizer"]["state"]
        self._optimizer.load_state_dict({"state": averages, "param_groups": settings})
        self.updates = state["updates"]
        self.skipped = state["skipped"]


def _make_optimizer(network: nn.Module, config: OptimizerSection) -> torch.optim.Optimizer:
    if config.optimizer == "adam":
        return torch.optim.Adam(
            network.parameters(),
            lr=config.learning_rate,
            eps=config.optimizer_epsilon,
            fused=True,
        )
    return RMSProp(
        network.parameters(),
        config.learning_rate,
        config.rmsprop_decay,
        config.optimizer_epsilon,
        centered=config.rmsprop_centered,
    )
