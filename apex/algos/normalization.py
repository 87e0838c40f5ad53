"""Normalisation of what networks see: an algorithm, its policies and learners with statistics.

The statistics are buffers of the network. So publications, checkpoints and trained policies hold
them, and a policy uses those that its parameters were trained with. Items hold raw numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.normalization import OBSERVATION, RETURN, Normalization
from apex.algos.base import Algorithm, Learner
from apex.algos.policy import InputTensors, Policy
from apex.data.schema import Arrays
from apex.errors import ConfigError
from apex.ops.moments import Moments

MEAN, VARIANCE, COUNT = "normalization_mean", "normalization_variance", "normalization_count"
"""Buffers of a network, float64: `[N]` each, all statistics side by side, and `[K]`, the rows that
each of the K statistics has counted."""
REWARD_SCALE = "reward_scale"
"""Extra output of a policy, `[E]`: the factor by which it multiplies rewards."""
EPSILON = 1e-8
"""Added to variances."""
CLIP = 10.0
"""Largest magnitude of a normalised number of an observation."""
DEFAULT_DISCOUNT = 0.99
"""Gamma of discounted returns for algorithms whose settings have no `discount`."""


class Normalizer:
    """Normalises inputs and batches by the statistics in a network's buffers.

    Variances of 0 and statistics of fewer than two rows change nothing: the factor is 1.

    Args:
        normalization: what to normalise.
    """

    def __init__(self, normalization: Normalization) -> None:
        self._shapes = dict(normalization.observations)
        self.sizes = normalization.sizes
        """Numbers of each statistic, by its key."""
        ends = np.cumsum(list(self.sizes.values())).tolist()
        self._slices = {
            key: slice(end - size, end) for (key, size), end in zip(self.sizes.items(), ends)
        }

    def add_buffers(self, network: nn.Module) -> None:
        """Add the buffers to a new network."""
        total = sum(self.sizes.values())
        for name, values in (
            (MEAN, torch.zeros(total, dtype=torch.float64)),
            (VARIANCE, torch.zeros(total, dtype=torch.float64)),
            (COUNT, torch.zeros(len(self.sizes), dtype=torch.float64)),
        ):
            network.register_buffer(name, values)

    def check(self, network: object, source: str) -> None:
        """Raise `ConfigError` unless a network has the buffers.

        Args:
            network: the network of a policy or a learner.
            source: where it came from, for the error.
        """
        if not isinstance(network, nn.Module) or not hasattr(network, MEAN):
            raise ConfigError(
                f"{source}: its network was not made by the algorithm's network(), so that it has "
                "no statistics to normalise by; make it there, or set env.normalize_observations "
                "and env.normalize_rewards to false"
            )

    @torch.no_grad()
    def write(self, network: nn.Module, statistics: Mapping[str, Moments]) -> None:
        """Write statistics into a network's buffers, in place and without waiting for the device.

        Args:
            network: has the buffers; recorded updates and policies read the same memory.
            statistics: of all keys.
        """
        known = [statistics[key] for key in self.sizes]
        enough = [moments.count >= 2 for moments in known]
        means = [m.mean if ok else np.zeros_like(m.mean) for m, ok in zip(known, enough)]
        variances = [m.variance if ok else np.zeros_like(m.mean) for m, ok in zip(known, enough)]
        counts = [np.array([m.count], np.float64) for m in known]
        for name, arrays in ((MEAN, means), (VARIANCE, variances), (COUNT, counts)):
            values = torch.from_numpy(np.concatenate(arrays))
            network.get_buffer(name).copy_(values, non_blocking=True)

    def read(self, network: nn.Module) -> dict[str, Moments]:
        """The statistics in a network's buffers. Waits for the device."""
        mean, variance, count = (
            network.get_buffer(name).cpu().numpy().copy() for name in (MEAN, VARIANCE, COUNT)
        )
        return {
            key: Moments(int(rows), mean[place], variance[place] * rows)
            for (key, place), rows in zip(self._slices.items(), count)
        }

    def observations(self, network: nn.Module, observations: Tensor) -> Tensor:
        """Normalised observations, `[..., *shape] float32`.

        They are computed in float64, so that a large mean leaves the small differences intact.
        """
        shape = self._shapes.get(OBSERVATION)
        if shape is None:
            return observations
        place = self._slices[OBSERVATION]
        mean = network.get_buffer(MEAN)[place].view(shape)
        factor = _factor(network.get_buffer(VARIANCE)[place]).view(shape)
        return ((observations.double() - mean) * factor).clamp(-CLIP, CLIP).float()

    def reward_scale(self, network: nn.Module) -> Tensor:
        """The factor of rewards and returns, a 0-dimensional float32 tensor."""
        if RETURN not in self.sizes:
            return torch.ones((), device=network.get_buffer(MEAN).device)
        return _factor(network.get_buffer(VARIANCE)[self._slices[RETURN]]).float().squeeze(0)

    def inputs(self, network: nn.Module, inputs: InputTensors) -> InputTensors:
        """A policy's inputs, normalised."""
        return inputs._replace(
            observations=self.observations(network, inputs.observations),
            last_rewards=inputs.last_rewards * self.reward_scale(network),
        )

    def batch(self, network: nn.Module, batch: Any) -> Any:
        """A batch on the device, normalised: observations, rewards and n-step returns.

        Raises:
            ConfigError: the batch is of a form that is not apex's.
        """
        fields = getattr(batch, "_fields", ())
        if "observation" not in fields or not {"n_step_return", "reward"} & set(fields):
            raise ConfigError(
                "env.normalize_observations and env.normalize_rewards need batches of "
                f"apex.api.Transitions or Sequences, the algorithm's are {type(batch).__name__}; "
                "set them to false and normalise in the algorithm"
            )
        scale = self.reward_scale(network)
        changes: dict[str, Tensor] = {}
        for name in ("observation", "next_observation"):
            if name in fields:
                changes[name] = self.observations(network, getattr(batch, name))
        for name in ("n_step_return", "reward", "last_reward"):
            if name in fields:
                changes[name] = getattr(batch, name) * scale
        return batch._replace(**changes)


def _factor(variance: Tensor) -> Tensor:
    """One over the standard deviation; 1 where the variance is 0."""
    return torch.where(variance > 0.0, torch.rsqrt(variance + EPSILON), 1.0)


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
        normalized = self._normalizer.inputs(self.network, tensors)
        arrays = Inputs(*(tensor.cpu().numpy() for tensor in normalized))
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
    """Goes before an algorithm's class, so that all it makes is normalised."""

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
        """The algorithm's, and the factor by which initial priorities multiply rewards."""
        algorithm: Any = super()
        return (*algorithm.extra_names, REWARD_SCALE)

    def initial_priorities(self, columns: Arrays, *extras: Mapping[str, Any]) -> Any:
        """The algorithm's, of rewards in the learner's units: those of the policy that acted."""
        scale = extras[0][REWARD_SCALE]
        scaled = {
            name: (columns[name] * scale).astype(columns[name].dtype)
            for name in ("n_step_return", "reward")
            if name in columns
        }
        algorithm: Any = super()
        return algorithm.initial_priorities({**columns, **scaled}, *extras)


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
