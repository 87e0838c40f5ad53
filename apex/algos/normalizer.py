"""Normalise inputs and batches by the statistics in a network's buffers.

The statistics are buffers of the network. So publications, checkpoints and trained policies hold
them, and a policy uses those that its parameters were trained with. Items hold raw numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apex.acting.normalization import RETURN, Normalization
from apex.algos.batches import Observation
from apex.algos.policy import InputTensors
from apex.data.observations import column_name
from apex.errors import ConfigError
from apex.ops.moments import Moments

MEAN, VARIANCE, COUNT = "normalization_mean", "normalization_variance", "normalization_count"
"""Buffers of a network, float64: `[N]` each, all statistics side by side, and `[K]`, the rows that
each of the K statistics has counted."""
EPSILON = 1e-8
"""Added to variances."""
CLIP = 10.0
"""Largest magnitude of a normalised number of an observation."""


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

    def observations(self, network: nn.Module, observations: Observation) -> Observation:
        """Observations whose vectors of numbers are normalised, `[..., *shape] float32`."""
        if isinstance(observations, dict):
            return {
                name: self._part(network, column_name(name), part)
                for name, part in observations.items()
            }
        return self._part(network, column_name(""), observations)

    def _part(self, network: nn.Module, key: str, observations: Tensor) -> Tensor:
        """One part, computed in float64, so that a large mean leaves small differences intact."""
        shape = self._shapes.get(key)
        if shape is None:
            return observations
        place = self._slices[key]
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
        changes: dict[str, Observation] = {}
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
