"""RMSProp in TensorFlow's form, which the papers used and torch does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class RMSProp(torch.optim.Optimizer):
    """theta -= lr * g / sqrt(E[g^2] - E[g]^2 + epsilon); without E[g]^2 if not centered.

    This is TensorFlow's form (`tf.compat.v1.train.RMSPropOptimizer`), with which Ape-X (centered)
    and IMPALA (not centered) were trained; Graves, 2013, equations 38 to 41, has the same formula.
    `torch.optim.RMSprop` differs in two ways, which make steps of small gradients hundreds of
    times longer:

    - It adds epsilon outside the square root, where the papers' value (1.5e-7) has little effect;
      here epsilon is inside.
    - It initialises E[g^2] to 0, so its first steps have the size of the learning rate however
      small the gradient is; here E[g^2] starts at 1. E[g] starts at 0 in both.

    Args:
        params: the parameters to optimize.
        lr: learning rate, a 0-dimensional tensor on the parameters' device.
        decay: decay of both moving averages per step.
        epsilon: added to the variance.
        centered: subtract the squared mean from the mean square.
    """

    found_inf: Tensor | None = None
    """0-dimensional; 1: skip the next step, 0 or None: take it. Name and meaning are those of
    torch's fused optimizers."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: Tensor,
        decay: float,
        epsilon: float,
        *,
        centered: bool = True,
    ) -> None:
        super().__init__(
            params, {"lr": lr, "decay": decay, "epsilon": epsilon, "centered": centered}
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take one step with the gradients that the parameters hold."""
        assert closure is None
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._step(parameters, [p.grad for p in parameters], group)

    def _step(
        self, parameters: list[Tensor], gradients: list[Tensor], group: dict[str, Any]
    ) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if "mean_square" not in state:
                state["mean_square"] = torch.ones_like(parameter)
            if group["centered"] and "mean" not in state:
                state["mean"] = torch.zeros_like(parameter)
        decay, rest, rate = group["decay"], 1.0 - group["decay"], group["lr"]
        if self.found_inf is not None:  # to skip: keep the averages and set the gradients to zero
            skip, zero = self.found_inf > 0, self.found_inf.new_zeros(())
            decay = torch.where(skip, 1.0, decay)
            for gradient in gradients:
                torch.where(skip, zero, gradient, out=gradient)
        squares = [self.state[p]["mean_square"] for p in parameters]
        torch._foreach_mul_(squares, decay)
        torch._foreach_addcmul_(squares, gradients, gradients, rest)
        if group["centered"]:
            means = [self.state[p]["mean"] for p in parameters]
            torch._foreach_mul_(means, decay)
            torch._foreach_add_(means, gradients, alpha=rest)
            scale = torch._foreach_mul(means, means)
            torch._foreach_neg_(scale)
            torch._foreach_add_(scale, squares)
            torch._foreach_clamp_min_(scale, 0.0)  # rounding may leave a variance below zero
            torch._foreach_add_(scale, group["epsilon"])
        else:
            scale = torch._foreach_add(squares, group["epsilon"])
        torch._foreach_sqrt_(scale)
        torch._foreach_div_(scale, rate)  # infinite if the rate is 0: the step is then 0
        torch._foreach_addcdiv_(parameters, gradients, scale, -1.0)
