"""The interface that every algorithm implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from apex.acting.accumulator import Accumulator
from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.exploration import LadderPlace, Progress
from apex.algos.batches import map_tensors
from apex.algos.optimization import Optimization
from apex.algos.target_network import TargetNetwork
from apex.config.sections import AlgorithmConfig
from apex.data.chunks import Items
from apex.data.schema import Schema
from apex.envs.spec import ActionKind, EnvSpec
from apex.errors import ConfigError

Metrics = Mapping[str, Tensor]
"""Figures of an update, by name: tensors without dimensions, read when they are logged."""


class Policy(ABC):
    """A network that acts. The actor and the evaluator load each new publication into it."""

    network: nn.Module
    device = torch.device("cpu")
    core_size: int = 0
    """Numbers in the recurrent state of one environment; 0: the policy has no memory."""

    @abstractmethod
    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        """Decide for E environments.

        Args:
            inputs: what is seen of them.
            exploration: None for the greedy policy.
        """

    def to(self, device: torch.device) -> None:
        """Act on another device."""
        self.device = device
        self.network.to(device)

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Take the parameters of a publication; on a CPU the tensors themselves, not copies.

        Raises:
            RuntimeError: they are those of another network.
        """
        own = self.network.state_dict(keep_vars=True)
        fits = {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in parameters.items()}
        if self.device.type != "cpu" or not fits:
            self.network.load_state_dict(parameters)
            return
        for name, parameter in own.items():
            tensor = parameters[name]
            if tensor.stride() == parameter.stride() and tensor.dtype == parameter.dtype:
                parameter.data = tensor
            else:  # a convolution's, which computes faster in another order
                parameter.data.copy_(tensor)


class Loss(NamedTuple):
    """What an algorithm's loss is, before it is reduced to one number."""

    per_item: Tensor
    """`[B]`; gradients flow from here."""
    priority: Tensor
    """`[B]`, the items' new priorities."""
    metrics: Metrics = MappingProxyType({})
    steps: int | Tensor = 1
    """By which the logged loss is divided: steps that an item's loss is summed over."""


class Update(NamedTuple):
    """What one update of a learner gives; it stays on the device until somebody reads it."""

    priorities: Tensor
    """`[B]`, the items' new priorities."""
    metrics: Metrics


class Learner(ABC):
    """Networks, optimizers and whatever else an update changes.

    `modules`, `optimizations` and `buffers` name all of that: it is what a checkpoint holds, and
    an update changes nothing else. An update does not wait for the device: no `item`, `float`,
    `bool` or boolean mask of a tensor in it.
    """

    network: nn.Module
    """What is published."""
    device: torch.device
    updates = 0
    """Finished so far, those before a resume included."""
    _progress: Progress | None = None

    @property
    def progress(self) -> Progress:
        """Of the run before this update: tensors without dimensions on the learner's device."""
        assert self._progress is not None, "there is none before the first update"
        return self._progress

    @abstractmethod
    def update(self, batch: Any) -> Update:
        """Learn from one batch that `Algorithm.collate` made, on the learner's device."""

    def modules(self) -> dict[str, nn.Module]:
        """The networks by name; what is trained, and what follows it."""
        return {"online": self.network}

    def optimizations(self) -> dict[str, Optimization]:
        """The optimizers by name."""
        return {}

    def buffers(self) -> dict[str, Tensor]:
        """Tensors that an update changes in place and that are in no module, by name."""
        return {}

    def targets(self) -> Sequence[TargetNetwork]:
        """Networks that follow others after each update."""
        return ()

    def learn(self, batch: Any, progress: Progress) -> Update:
        """Set learning rates, update, and let target networks follow.

        Args:
            batch: that `Algorithm.collate` made.
            progress: of the run, before this update.
        """
        if self._progress is None:
            self._progress = Progress(*(torch.zeros((), device=self.device) for _ in progress))
        for tensor, count in zip(self._progress, progress):
            tensor.fill_(count)
        for optimization in self.optimizations().values():
            optimization.schedule(self.updates)
        given: Any = self.update(map_tensors(batch, lambda tensor: tensor.to(self.device)))
        update = (
            given if isinstance(given, Update) else deprecated_interface().as_update(given, self)
        )
        self.updates += 1
        for target in self.targets():
            target.follow(self.updates)
        metrics = {name: value.detach() for name, value in update.metrics.items()}
        return Update(update.priorities.detach(), metrics)

    def tensors(self, batch: Any) -> dict[str, Tensor]:
        """A batch as a dictionary, for a learner that was written for apex 0.1."""
        named: dict[str, Tensor] = deprecated_interface().as_dictionary(batch)
        return named

    def load_parameters(self, parameters: Mapping[str, Tensor]) -> None:
        """Start from published parameters instead of random ones."""
        self.network.load_state_dict(parameters)
        for target in self.targets():
            target.network.load_state_dict(parameters)

    def is_finite(self) -> bool:
        """Whether all parameters and buffers are finite; waits for the device."""
        tensors = [*self.buffers().values()]
        for module in self.modules().values():
            tensors += [*module.parameters(), *module.buffers()]
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed learner needs, as tensors and plain values."""
        return {
            "modules": {name: one.state_dict() for name, one in self.modules().items()},
            "optimizations": {name: one.state_dict() for name, one in self.optimizations().items()},
            "buffers": dict(self.buffers()),
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Raises:
            ValueError, RuntimeError, KeyError: it is of another algorithm, network or optimizer.
        """
        if "modules" not in state:
            state = _from_version_0_1(state)
        for name, optimization in self.optimizations().items():
            optimization.load_state_dict(state["optimizations"][name])
        for name, module in self.modules().items():
            module.load_state_dict(state["modules"][name])
        for name, buffer in self.buffers().items():
            buffer.copy_(state["buffers"][name])
        self.updates = state["updates"]


def _from_version_0_1(state: Mapping[str, Any]) -> dict[str, Any]:
    """A learner's state as apex 0.1.0 wrote it, in today's form."""
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


class Algorithm(ABC):
    """An agent: its network, its policy, its items, its loss.

    Derive from `TransitionAlgorithm` or `SequenceAlgorithm`, which say what an item is, or from
    `QAlgorithm` or `SequenceQAlgorithm`, which need a network and a TD error alone.

    Args:
        config: the algorithm's own section of the configuration.
        spec: of the environment.
    """

    Config: ClassVar[type[AlgorithmConfig]] = AlgorithmConfig
    """The typed `[algorithm]` section."""
    action_kinds: ClassVar[frozenset[ActionKind]] = frozenset({"discrete"})
    """The kinds of actions that it can learn."""
    reduction: ClassVar[Literal["mean", "sum"]] = "mean"
    """How the losses of a batch's items become one: the mean, weighted for what prioritized
    sampling favours, or the plain sum."""

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        deprecated_interface().adapt_exploration(cls)

    def __init__(self, config: Any, spec: EnvSpec) -> None:
        self.config = config
        self.spec = spec

    @abstractmethod
    def schema(self) -> Schema:
        """The columns of an item."""

    @abstractmethod
    def accumulator(self, num_envs: int, chunk_length: int) -> Accumulator:
        """Makes items, with initial priorities, of the steps of `num_envs` environments."""

    @abstractmethod
    def collate(self, items: Items) -> Any:
        """A batch for `Learner.update`, on the CPU; called on a thread beside the training loop.

        Raises:
            CorruptItemsError: some of the items do not make sense.
        """

    @abstractmethod
    def exploration(self, place: LadderPlace) -> Exploration:
        """Exploration of the environments at some places of the ladder."""

    @abstractmethod
    def policy(self) -> Policy:
        """A policy on the CPU, with parameters yet to be loaded."""

    def network(self) -> nn.Module:
        """The network with fresh parameters."""
        raise NotImplementedError(f"{type(self).__name__} needs network() or its own learner()")

    def loss(self, batch: Any, online: nn.Module, target: nn.Module | None) -> Loss:
        """The loss of a batch.

        Args:
            batch: that `collate` made, on the learner's device.
            online: the network that is trained.
            target: the network that follows it; None where the configuration has no
                `target_update_period`.
        """
        raise NotImplementedError(f"{type(self).__name__} needs loss() or its own learner()")

    def learner(self, device: torch.device) -> Learner:
        """The learner on a device, with freshly initialised parameters."""
        from apex.algos.loss_learner import LossLearner

        return LossLearner(self, device)


def deprecated_interface() -> Any:
    """What lets algorithms of apex 0.1 go on; it needs this module itself."""
    from apex.algos import deprecated_interface

    return deprecated_interface


def check_priorities(update: Update, batch_size: int, learner: Learner) -> None:
    """Raise `ConfigError` unless an update gave a priority for each item."""
    if tuple(update.priorities.shape) != (batch_size,):
        raise ConfigError(
            f"{type(learner).__name__}.update gave priorities {tuple(update.priorities.shape)}, "
            f"expected one for each item of the batch, ({batch_size},)"
        )
