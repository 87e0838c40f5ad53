"""The default learner: one network, one loss, one optimizer, and an optional target network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apex.algos.base import Algorithm, Learner, Loss, Update, check_loss
from apex.algos.noise import resample_noise
from apex.algos.optimization import Optimization
from apex.algos.target_network import TargetNetwork
from apex.ops.double_q_learning import importance_weights


class LossLearner(Learner):
    """Minimises `Algorithm.loss`.

    It has a target network if the algorithm's configuration has a `target_update_period`. With
    the reduction `mean` it applies importance sampling weights if the configuration has an
    `importance_sampling_exponent`.

    Args:
        algorithm: makes the network and computes the loss.
        device: of the networks.
    """

    weighs_items = True

    def __init__(self, algorithm: Algorithm, device: torch.device) -> None:
        config = algorithm.config
        self.device = device
        self._algorithm = algorithm
        self.network = algorithm.network().to(device)
        self._target: TargetNetwork | None = None
        if hasattr(config, "target_update_period"):
            target = algorithm.network().to(device)
            self._target = TargetNetwork(self.network, target, period=config.target_update_period)
        self._optimization = Optimization(self.network, config)
        self._exponent = getattr(config, "importance_sampling_exponent", None)

    @property
    def target(self) -> nn.Module | None:
        """The target network; None if the algorithm has none."""
        return self._target.network if self._target else None

    def modules(self) -> dict[str, nn.Module]:
        target = {} if self.target is None else {"target": self.target}
        return {"online": self.network, **target}

    def optimizations(self) -> dict[str, Optimization]:
        return {"online": self._optimization}

    def targets(self) -> Sequence[TargetNetwork]:
        return () if self._target is None else (self._target,)

    def update(self, batch: Any) -> Update:
        for module in self.modules().values():
            resample_noise(module)
        self._algorithm.progress = self.progress
        source = f"{type(self._algorithm).__name__}.loss"
        loss = check_loss(
            self._algorithm.loss(batch, self.network, self.target), source, len(batch.action)
        )
        reduced, metrics = self._reduced(loss, batch)
        metrics = {
            **self._optimization.step(reduced),
            "loss": reduced / loss.steps,
            **loss.metrics,
            **metrics,
        }
        return Update(loss.priority, metrics)

    def _reduced(self, loss: Loss, batch: Any) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Reduce the items' losses to one number; returns it with its metrics."""
        if self._algorithm.reduction == "sum":
            return self.sum_over_items(loss.per_item), {}
        if self._exponent is None:
            return self.mean_over_items(loss.per_item), {}
        weights = importance_weights(batch.probability, self._exponent)
        reduced = self.mean_over_items(weights * loss.per_item)
        return reduced, {"importance_weight_mean": self.mean_over_items(weights)}
