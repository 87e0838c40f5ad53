"""What an algorithm is: everything about an agent that is not distribution."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from apex.acting.accumulator import Accumulator
from apex.acting.decisions import Decision, Exploration, Inputs
from apex.data.chunks import Items
from apex.data.schema import Array, Arrays, Schema
from apex.envs.spec import ActionKind, EnvSpec
from apex.errors import ConfigError

BatchArrays = Mapping[str, Array] | Mapping[str, Tensor]
"""What `Algorithm.collate` gave: `[B, ...]` each, as it was or on the learner's device."""


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


class Learner(ABC):
    """The part of an algorithm that has an optimizer."""

    network: nn.Module
    """What is published."""
    device: torch.device

    @abstractmethod
    def update(
        self, batch: BatchArrays
    ) -> tuple[npt.NDArray[np.float64], dict[str, float | Tensor]]:
        """Learn from one batch that `Algorithm.collate` prepared.

        Returns:
            New priorities `[B]`, and metrics (tensors are read only when they are logged).
        """

    def tensors(self, batch: BatchArrays) -> dict[str, Tensor]:
        """A batch on the learner's device, where it may be already."""
        return {name: torch.as_tensor(array, device=self.device) for name, array in batch.items()}

    def load_parameters(self, parameters: Mapping[str, Tensor]) -> None:
        """Start from published parameters instead of random ones."""
        self.network.load_state_dict(parameters)

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that a resumed learner needs, as tensors and plain values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`."""


def learn(
    learner: Learner, batch: BatchArrays, batch_size: int
) -> tuple[npt.NDArray[np.float64], dict[str, float | Tensor]]:
    """One update, and what came of it in the form that daemons rely on.

    Returns:
        New priorities `[B] float64`, and metrics without gradients.

    Raises:
        ConfigError: the learner gave something else than a priority for each item.
    """
    given, metrics = learner.update(batch)
    priorities = given.detach().cpu() if isinstance(given, Tensor) else given
    array = np.asarray(priorities, dtype=np.float64)
    if array.shape != (batch_size,):
        raise ConfigError(
            f"{type(learner).__name__}.update gave priorities {array.shape}, expected one for each "
            f"item of the batch, ({batch_size},)"
        )
    detached = {k: v.detach() if isinstance(v, Tensor) else v for k, v in metrics.items()}
    return array, detached


class Algorithm(ABC):
    """An agent: its network, its policy, its items, its update.

    Args:
        config: the algorithm's own section of the configuration.
        spec: of the environment.
    """

    Config: ClassVar[type[msgspec.Struct]]
    """The typed `[algorithm]` section; `name` is among its fields."""
    action_kinds: ClassVar[frozenset[ActionKind]] = frozenset({"discrete"})
    """The kinds of actions that it can learn."""

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
    def exploration(
        self, positions: npt.NDArray[np.float64], ladder_size: int, seeds: Sequence[Sequence[int]]
    ) -> Exploration:
        """Exploration of the environments that stand at `positions` of the ladder."""

    @abstractmethod
    def policy(self) -> Policy:
        """A policy on the CPU, with parameters yet to be loaded."""

    @abstractmethod
    def learner(self, device: torch.device) -> Learner:
        """The learner on a device, with freshly initialised parameters."""

    @abstractmethod
    def collate(self, items: Items) -> Arrays:
        """A batch for `Learner.update`; called on a thread beside the training loop."""
