"""Subclass of an algorithm whose policies and learners normalise their inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.normalization import Normalization
from apex.algos.base import Algorithm, Learner
from apex.algos.normalizer import Normalizer
from apex.algos.policy import InputTensors, Policy
from apex.data.observations import map_arrays
from apex.data.schema import Arrays

REWARD_SCALE = "reward_scale"
"""Extra output of a policy, `[E]`: the factor by which it multiplies rewards."""
DEFAULT_DISCOUNT = 0.99
"""Gamma of discounted returns for algorithms whose settings have no `discount`."""


class NormalizedPolicy(Policy):
    """A policy whose inputs are normalised first.

    Args:
        policy: chooses the actions.
        normalizer: normalises by the buffers of the policy's network.
    """

    def __init__(self, policy: Policy, normalizer: Normalizer) -> None:
        normalizer.check(policy.network, f"{type(policy).__name__}")
        self._policy, self._normalizer = policy, normalizer
        self.network = policy.network
        self.device = policy.device
        self.core_size = policy.core_size

    def compute(self, inputs: InputTensors) -> Mapping[str, Tensor]:
        normalized = self._normalizer.inputs(self.network, inputs)
        scale = self._normalizer.reward_scale(self.network)
        outputs = self._policy.compute(normalized)
        return {**outputs, REWARD_SCALE: scale.expand(len(inputs.last_rewards))}

    def decide(self, outputs: Arrays, inputs: Inputs, exploration: Exploration | None) -> Decision:
        decision = self._policy.decide(outputs, inputs, exploration)
        extras = {**decision.extras, REWARD_SCALE: outputs[REWARD_SCALE]}
        return decision._replace(extras=extras)

    @torch.inference_mode()
    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        if self.decides_later:
            return super().act(inputs, exploration)
        tensors = InputTensors.of(inputs, self.device)
        observations, *rest = self._normalizer.inputs(self.network, tensors)
        on_host = map_arrays(lambda tensor: tensor.cpu().numpy(), observations)
        arrays = Inputs(on_host, *(tensor.cpu().numpy() for tensor in rest))
        decision = self._policy.act(arrays, exploration)
        scale = self._normalizer.reward_scale(self.network).cpu().numpy()
        scales = np.full(len(inputs.last_rewards), scale)
        return decision._replace(extras={**decision.extras, REWARD_SCALE: scales})

    @property
    def decides_later(self) -> bool:
        return self._policy.decides_later

    @property
    def loads_in_place(self) -> bool:
        """Whether `load` copies into the existing tensors on a CPU too."""
        return self._policy.loads_in_place

    @loads_in_place.setter
    def loads_in_place(self, value: bool) -> None:
        self._policy.loads_in_place = value

    def to(self, device: torch.device) -> None:
        self._policy.to(device)
        self.device = device

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        self._policy.load(parameters)


class _Normalizing(Algorithm):
    """Mixin that goes before an algorithm's class: policies, learners and priorities normalise."""

    normalizer: Normalizer

    def network(self) -> nn.Module:
        network = super().network()
        self.normalizer.add_buffers(network)
        return network

    def policy(self) -> Policy:
        return NormalizedPolicy(super().policy(), self.normalizer)  # type: ignore[safe-super]

    def learner(self, device: torch.device) -> Learner:
        learner = super().learner(device)
        if isinstance(learner, Learner):  # else the caller says what it expected
            self.normalizer.check(learner.network, type(learner).__name__)
            learner.normalizer = self.normalizer
        return learner

    @property
    def extra_names(self) -> tuple[str, ...]:
        """Names of the algorithm, and of the factor of rewards in initial priorities."""
        algorithm: Any = super()
        return (*algorithm.extra_names, REWARD_SCALE)

    def initial_priorities(self, columns: Arrays, *extras: Mapping[str, Any]) -> Any:
        """Initial priorities of the algorithm, from rewards scaled as by the policy that acted."""
        scale = extras[0][REWARD_SCALE]
        given = dict(columns)
        for name in ("n_step_return", "reward"):
            if name in given:
                given[name] = (given[name] * scale).astype(given[name].dtype)
        algorithm: Any = super()
        return algorithm.initial_priorities(given, *extras)


def normalized(kind: type[Algorithm], normalization: Normalization) -> type[Algorithm]:
    """An algorithm's class whose policies and learners normalise what their networks see."""
    normalizer = Normalizer(normalization)
    attributes = {
        "__module__": kind.__module__,
        "normalization": normalization,
        "normalizer": normalizer,
    }
    return type(kind.__name__, (_Normalizing, kind), attributes)


def normalization_discount(config: object) -> float:
    """The discount of the returns whose variance scales rewards: the algorithm's, if it has one."""
    discount = getattr(config, "discount", DEFAULT_DISCOUNT)
    return float(discount) if math.isfinite(discount) else DEFAULT_DISCOUNT
