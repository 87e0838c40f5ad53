"""Support for algorithms written for apex 0.1: batches as dictionaries, NumPy priorities.

They work, with a warning, until apex 0.3. Derive from `apex.api.QAlgorithm` instead.
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

OLD_PARAMETERS = ("positions", "ladder_size", "seeds")


def warn(problem: str) -> None:
    """Warn about a use of the old interface."""
    warnings.warn(f"{problem}; apex 0.3 removes the old form", FutureWarning, stacklevel=3)


def learner_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a learner state written by apex 0.1.0 to the current layout."""
    modules = {n: state[n] for n in ("online", "target") if n in state}
    if "network" in state:
        modules["online"] = state["network"]
    optimizations = {name: state[name] for name in ("critic", "actor") if name in state}
    if "optimizer" in state:
        optimizations["online"] = state
    updates = next(iter(optimizations.values()))["updates"]
    return {
        "modules": modules,
        "optimizations": optimizations,
        "buffers": {},
        "updates": updates,
    }


def adapt_exploration(kind: type) -> None:
    """Wrap a three-argument `exploration` method so that it accepts a `LadderPlace`."""
    method = vars(kind).get("exploration")
    if method is None or len(inspect.signature(method).parameters) != 1 + len(OLD_PARAMETERS):
        return
    warn(f"{kind.__name__}.exploration must take one argument, an apex.api.LadderPlace")

    @wraps(method)
    def exploration(self: Any, place: LadderPlace) -> Any:
        return method(self, place.positions, place.size, place.seeds)

    kind.exploration = exploration  # type: ignore[attr-defined]


def as_update(result: Any, learner: Learner) -> Update:
    """Convert the result of `Learner.update`; apex 0.1 returned `(priorities, metrics)`."""
    if isinstance(result, Update):
        return result
    priorities, metrics = result
    warn(f"{type(learner).__name__}.update must return an apex.api.Update")
    tensors = {name: torch.as_tensor(value) for name, value in metrics.items()}
    return Update(torch.as_tensor(priorities), tensors)


def as_dictionary(batch: Any) -> dict[str, Any]:
    """Convert a batch to the dictionary of tensors that apex 0.1 used, without empty fields."""
    if isinstance(batch, Mapping):
        return dict(batch)
    named = {**batch._asdict(), **batch.extras}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


class TargetNetworkLearner(Learner):
    """A learner with one loss, an online network and its target network.

    Args:
        online: the trained network.
        target: a second network of the same architecture.
        config: the optimizer's configuration.
        target_update_period: learner steps between copies of the online network to the target.
        device: of both networks.
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
        self._target_network = TargetNetwork(self.network, self.target, period=target_update_period)
        self._optimization = Optimization(self.network, config)

    def modules(self) -> dict[str, nn.Module]:
        return {"online": self.network, "target": self.target}

    def optimizations(self) -> dict[str, Optimization]:
        return {"online": self._optimization}

    def targets(self) -> tuple[TargetNetwork, ...]:
        return (self._target_network,)

    def descend(self, loss: Tensor) -> dict[str, Tensor]:
        """Take one optimizer step of the online network; returns its metrics."""
        return self._optimization.step(loss)
