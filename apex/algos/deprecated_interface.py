"""Algorithms that were written for apex 0.1: dictionaries as batches, NumPy priorities.

They work for one version, with a warning. `apex.api.QAlgorithm` is what they become.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from apex.acting.exploration import LadderPlace
from apex.algos.base import Learner, Update
from apex.algos.optimization import Optimization, OptimizerConfig
from apex.algos.target_network import TargetNetwork

OLDER_EXPLORATION = ("positions", "ladder_size", "seeds")


def warn(what: str) -> None:
    """Say that something is of the older interface."""
    warnings.warn(f"{what}; the older form goes with apex 0.3", FutureWarning, stacklevel=3)


def adapt_exploration(kind: type) -> None:
    """Let a class whose `exploration` takes three arguments be called with a place."""
    method = vars(kind).get("exploration")
    if method is None or len(inspect.signature(method).parameters) != 1 + len(OLDER_EXPLORATION):
        return
    warn(f"{kind.__name__}.exploration takes one argument now, an apex.api.LadderPlace")

    @wraps(method)
    def exploration(self: Any, place: LadderPlace) -> Any:
        return method(self, place.positions, place.size, place.seeds)

    kind.exploration = exploration  # type: ignore[attr-defined]


def as_update(given: Any, learner: Learner) -> Update:
    """What `Learner.update` gave: an `Update`, or priorities and metrics as apex 0.1 had them."""
    if isinstance(given, Update):
        return given
    priorities, metrics = given
    warn(f"{type(learner).__name__}.update returns an apex.api.Update now")
    tensors = {name: torch.as_tensor(value) for name, value in metrics.items()}
    return Update(torch.as_tensor(priorities), tensors)


def as_dictionary(batch: Any) -> dict[str, Any]:
    """A batch as apex 0.1 had it: by name, without what is not there."""
    if isinstance(batch, Mapping):
        return dict(batch)
    named = {**batch._asdict(), **batch.extras}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


class TargetNetworkLearner(Learner):
    """An online network with one loss, and its target network.

    Args:
        online: the network.
        target: another one of its kind.
        config: of the optimizer.
        target_update_period: learner steps between two copies of the online to the target network.
        device: where both are.
    """

    def __init__(
        self,
        online: nn.Module,
        target: nn.Module,
        config: OptimizerConfig,
        target_update_period: int,
        device: torch.device,
    ) -> None:
        self.device = device
        self.network = online.to(device)
        self.target = target.to(device)
        self._follower = TargetNetwork(self.network, self.target, period=target_update_period)
        self._optimization = Optimization(self.network, config)

    def modules(self) -> dict[str, nn.Module]:
        return {"online": self.network, "target": self.target}

    def optimizations(self) -> dict[str, Optimization]:
        return {"online": self._optimization}

    def targets(self) -> tuple[TargetNetwork, ...]:
        return (self._follower,)

    def descend(self, loss: Tensor) -> dict[str, Tensor]:
        """One step of the online network; returns what is logged of it."""
        return self._optimization.step(loss)
