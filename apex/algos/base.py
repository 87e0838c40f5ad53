"""The interface that every algorithm implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from apex.acting.accumulator import Accumulator
from apex.acting.decisions import Exploration
from apex.acting.exploration import LadderPlace, Progress
from apex.acting.normalization import Normalization
from apex.algos.batches import Padded, expanded, map_tensors
from apex.algos.normalizer import Normalizer
from apex.algos.optimization import Optimization
from apex.algos.policy import Policy
from apex.algos.target_network import TargetNetwork
from apex.config.sections import AlgorithmConfig
from apex.data.chunks import Items
from apex.data.schema import Schema
from apex.envs.spec import ActionKind, EnvSpec, ObservationPart
from apex.errors import ConfigError
from apex.networks.torsos import Encoders

Metrics = Mapping[str, Tensor]
"""Metrics of an update by name: 0-dimensional tensors, read from the device when logged."""


class Loss(NamedTuple):
    """The loss of a batch before it is reduced to one number."""

    per_item: Tensor
    """`[B]`, the loss of each item; gradients are computed from it."""
    priority: Tensor
    """`[B]`, the items' new priorities."""
    metrics: Metrics = MappingProxyType({})
    steps: int | Tensor = 1
    """Divisor of the logged loss: the number of steps that an item's loss is summed over."""


def check_loss(loss: Any, source: str, items: int) -> Loss:
    """Check the form of what an algorithm's `loss` returned; no value is read from the device.

    Args:
        loss: as it was returned.
        source: who returned it, for the error.
        items: size of the batch.

    Raises:
        ConfigError: it is not a `Loss` of one loss and one priority for each item.
    """
    if not isinstance(loss, Loss):
        raise ConfigError(
            f"{source} returned a {type(loss).__name__}; expected apex.api.Loss(per_item, priority)"
        )
    for name, values in (("per_item", loss.per_item), ("priority", loss.priority)):
        check_errors(values, f"{source}: {name}", items)
    for name, value in loss.metrics.items():
        if not isinstance(value, Tensor) or value.ndim:
            raise ConfigError(
                f"{source}: metric '{name}': expected a 0-dimensional tensor, got "
                f"{f'shape {tuple(value.shape)}' if isinstance(value, Tensor) else repr(value)}"
            )
    return loss


def check_errors(errors: Any, source: str, items: int) -> None:
    """Raise `ConfigError` unless `errors` is a tensor with one number for each item."""
    if not isinstance(errors, Tensor) or errors.shape != (items,):
        shape = f"shape {tuple(errors.shape)}" if isinstance(errors, Tensor) else repr(errors)
        raise ConfigError(f"{source}: expected a tensor of shape ({items},), got {shape}")


class Update(NamedTuple):
    """Result of one learner update; the tensors stay on the device until they are read."""

    priorities: Tensor
    """`[B]`, the items' new priorities."""
    metrics: Metrics


class Learner(ABC):
    """Networks, optimizers and all other state that an update changes.

    `modules`, `optimizations` and `buffers` name all of that state: checkpoints store it, and
    `update` must change nothing else. `update` must not wait for the device: it must not call
    `item`, `float` or `bool` on a tensor, nor index with a boolean mask.
    """

    network: nn.Module
    """The network whose parameters are published."""
    device: torch.device
    updates = 0
    """Updates so far, including those before a resume."""
    precision: torch.dtype | None = None
    """`torch.bfloat16`: networks compute in it where autocast allows; None: float32."""
    weighs_items: ClassVar[bool] = False
    """Whether `update` averages with `mean_over_items`, so that a batch may have padding."""
    item_weights: Tensor | None = None
    """`[B] float32` during an update: 1, or 0 for rows that pad the batch; None: no padding."""
    normalizer: Normalizer | None = None
    """Normalises batches by the statistics in `network`; None: the run does not normalise."""
    _progress: Progress | None = None

    @property
    def progress(self) -> Progress:
        """Progress of the run before this update: 0-dimensional int64 tensors on the device."""
        assert self._progress is not None, "progress is available from the first update on"
        return self._progress

    @abstractmethod
    def update(self, batch: Any) -> Update:
        """Learn from one batch of `Algorithm.collate`, moved to the learner's device."""

    def modules(self) -> dict[str, nn.Module]:
        """The networks by name, both trained and target networks."""
        return {"online": self.network}

    def optimizations(self) -> dict[str, Optimization]:
        """The optimizers by name."""
        return {}

    def buffers(self) -> dict[str, Tensor]:
        """Tensors outside the modules that an update changes in place, by name."""
        return {}

    def targets(self) -> Sequence[TargetNetwork]:
        """The target networks, updated after each learner update."""
        return ()

    def learn(
        self, batch: Any, progress: Progress, execute: Callable[[Any], Update] | None = None
    ) -> Update:
        """Set the learning rates, make one update, then update the target networks.

        Args:
            batch: from `Algorithm.collate` or `Algorithm.pack`; a packed one is expanded.
            progress: progress of the run before this update.
            execute: makes the update from a batch on the device, such as by a CUDA graph; None:
                `run_update`.
        """
        if self._progress is None:
            zeros = (torch.zeros((), dtype=torch.int64, device=self.device) for _ in progress)
            self._progress = Progress(*zeros)
        for tensor, count in zip(self._progress, progress):
            tensor.fill_(count)
        for optimization in self.optimizations().values():
            optimization.schedule(self.updates)
        moved = map_tensors(batch, lambda tensor: tensor.to(self.device))
        update = (execute or self.run_update)(moved)
        self.updates += 1
        for target in self.targets():
            target.follow(self.updates)
        return update

    def run_update(self, batch: Any) -> Update:
        """Call `update` in the learner's precision. It does nothing that waits for the device.

        Args:
            batch: on the learner's device; `Padded` if it has rows that must not count.
        """
        self.item_weights = None
        if isinstance(batch, Padded):
            batch, self.item_weights = batch
        with torch.autocast(
            self.device.type,
            self.precision or torch.float32,
            enabled=self.precision is not None,
            cache_enabled=False,  # a weight that was cast without gradients would have none later
        ):
            batch = expanded(batch)
            if self.normalizer is not None:  # for target networks, too, by the same statistics
                batch = self.normalizer.batch(self.network, batch)
            result: Any = self.update(batch)
        update = (
            result if isinstance(result, Update) else deprecated_interface().as_update(result, self)
        )
        metrics = {name: value.detach() for name, value in update.metrics.items()}
        return Update(update.priorities.detach(), metrics)

    def mean_over_items(self, values: Tensor) -> Tensor:
        """The mean of one value for each item, `[B]`; rows that pad the batch do not count."""
        if self.item_weights is None:
            return values.mean()
        return (self.item_weights * values).sum() / self.item_weights.sum()

    def sum_over_items(self, values: Tensor) -> Tensor:
        """The sum of one value for each item, `[B]`; rows that pad the batch do not count."""
        return (values if self.item_weights is None else self.item_weights * values).sum()

    def compiled_modules(self) -> Sequence[nn.Module]:
        """The modules that `learner.execution = "compile"` compiles: those that `update` calls."""
        return list(self.modules().values())

    def tensors(self, batch: Any) -> dict[str, Tensor]:
        """A batch as a dictionary, for learners written for apex 0.1."""
        named: dict[str, Tensor] = deprecated_interface().as_dictionary(batch)
        return named

    def load_parameters(self, parameters: Mapping[str, Tensor]) -> None:
        """Load published parameters into `network`; target networks copy what they follow."""
        self.network.load_state_dict(parameters)
        for target in self.targets():
            target.copy_online()

    def state_tensors(self) -> dict[str, list[Tensor]]:
        """All tensors that an update or a target network's update changes, by kind."""
        modules = self.modules().values()
        found: dict[str, list[Tensor]] = {
            "parameters": [tensor for module in modules for tensor in module.parameters()],
            "networks' buffers": [tensor for module in modules for tensor in module.buffers()],
            "buffers": list(self.buffers().values()),
        }
        for optimization in self.optimizations().values():
            for name, tensors in optimization.tensors().items():
                found.setdefault(f"optimizer's {name}", []).extend(tensors)
        return found

    def is_finite(self) -> bool:
        """Whether all parameters and buffers are finite. Waits for the device."""
        tensors = [*self.buffers().values()]
        for module in self.modules().values():
            tensors += [*module.parameters(), *module.buffers()]
        return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)

    def state_dict(self) -> dict[str, Any]:
        """The learner's state for a checkpoint, as tensors and plain values."""
        optimizations = self.optimizations().items()
        return {
            "modules": {name: module.state_dict() for name, module in self.modules().items()},
            "optimizations": {name: optimizer.state_dict() for name, optimizer in optimizations},
            "buffers": dict(self.buffers()),
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError, RuntimeError, KeyError: the state belongs to another algorithm, network or
                optimizer.
        """
        if "modules" not in state:
            state = deprecated_interface().learner_state(state)
        for name, optimization in self.optimizations().items():
            optimization.load_state_dict(state["optimizations"][name])
        for name, module in self.modules().items():
            module.load_state_dict(state["modules"][name])
        for name, buffer in self.buffers().items():
            buffer.copy_(state["buffers"][name])
        self.updates = state["updates"]


class Algorithm(ABC):
    """A learning algorithm: its items, exploration, policy, network and loss.

    Derive from `TransitionAlgorithm` or `SequenceAlgorithm`, which define the items, or from
    `QAlgorithm` or `SequenceQAlgorithm`, which need only a network and a TD error.

    Args:
        config: the typed `[algorithm]` section of the configuration.
        spec: specification of the environment.
    """

    Config: ClassVar[type[AlgorithmConfig]] = AlgorithmConfig
    """The typed `[algorithm]` section."""
    action_kinds: ClassVar[frozenset[ActionKind]] = frozenset({"discrete"})
    """The kinds of actions that the algorithm supports."""
    reduction: ClassVar[Literal["mean", "sum"]] = "mean"
    """How the per-item losses of a batch are reduced: `mean`, with importance sampling weights if
    the configuration has an `importance_sampling_exponent`, or `sum`, without weights."""
    normalization: ClassVar[Normalization | None] = None
    """What the run normalises; `algos/normalization.py` sets it."""
    progress: Progress
    """Progress of the run before this update, for `loss` and `td_error`: 0-dimensional int64
    tensors on the learner's device. `LossLearner` sets it; another learner that calls `loss` sets
    it to its own `progress`."""

    def __init_subclass__(cls, **rest: Any) -> None:
        super().__init_subclass__(**rest)
        deprecated_interface().adapt_exploration(cls)

    def __init__(self, config: Any, spec: EnvSpec) -> None:
        self.config = config
        self.spec = spec

    @classmethod
    def undefined(cls) -> list[str]:
        """Names of the methods that a subclass still has to define."""
        return sorted(cls.__abstractmethods__)

    @abstractmethod
    def schema(self) -> Schema:
        """The columns of an item."""

    def new_frames(self) -> int:
        """Frames that an item adds to those of the item before it, for estimates of memory."""
        return 1

    @abstractmethod
    def accumulator(self, num_envs: int, chunk_length: int) -> Accumulator:
        """An accumulator that turns steps of `num_envs` environments into prioritized items."""

    @abstractmethod
    def collate(self, items: Items) -> Any:
        """Make a batch for `Learner.update`, on the CPU. Runs outside the training thread.

        Raises:
            CorruptItemsError: some items are invalid.
        """

    def pack(self, items: Items) -> Any:
        """Make a batch on the CPU as it crosses to the learner's device, with each frame once.

        `batches.expanded` makes on the device what `collate` makes on the CPU. Default: the batch
        of `collate`. Runs outside the training thread.

        Raises:
            CorruptItemsError: some items are invalid.
        """
        return self.collate(items)

    @abstractmethod
    def exploration(self, place: LadderPlace) -> Exploration:
        """The exploration of environments, given their places on the exploration ladder."""

    @abstractmethod
    def policy(self) -> Policy:
        """A policy on the CPU, whose parameters are loaded later."""

    def part_encoder(self, part: ObservationPart) -> nn.Module | None:
        """An encoder of one part of the observation; None: the default one.

        Override it to replace the encoder of a part, or of a plain observation, whose name is
        empty. It is called once for each network.

        Returns:
            A module with the attribute `out_features`. It maps `[B, *part.shape]`, or for an image
            `[B, frame_stack, *part.shape] uint8`, to `[B, out_features]`.
        """
        return None

    def encoders(self) -> Encoders:
        """What replaces the default encoders; the argument of `apex.api.torso`."""
        return Encoders(getattr(self.config, "conv_by_part", {}), self.part_encoder)

    def network(self) -> nn.Module:
        """The network with newly initialised parameters."""
        raise NotImplementedError(f"{type(self).__name__} must define network() or learner()")

    def loss(self, batch: Any, online: nn.Module, target: nn.Module | None) -> Loss:
        """The loss of a batch.

        Args:
            batch: from `collate`, on the learner's device.
            online: the trained network.
            target: the target network; None if the configuration has no `target_update_period`.
        """
        raise NotImplementedError(f"{type(self).__name__} must define loss() or learner()")

    def learner(self, device: torch.device) -> Learner:
        """A learner on a device, with newly initialised parameters."""
        from apex.algos.loss_learner import LossLearner

        return LossLearner(self, device)


def deprecated_interface() -> Any:
    """The module that supports algorithms written for apex 0.1; imported late, as it imports us."""
    from apex.algos import deprecated_interface

    return deprecated_interface


def check_priorities(update: Update, batch_size: int, learner: Learner) -> None:
    """Raise `ConfigError` unless an update has one priority for each item."""
    shape = tuple(update.priorities.shape)
    if shape != (batch_size,):
        raise ConfigError(
            f"{type(learner).__name__}.update returned priorities of shape {shape}; expected "
            f"({batch_size},), one for each item of the batch"
        )
