"""The interface of policies: networks that choose actions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.algos.batches import Observation, map_tensors
from apex.algos.noise import resample_noise
from apex.data.observations import action_mask
from apex.data.schema import Arrays
from apex.ops.action_masks import masked_values


class InputTensors(NamedTuple):
    """A policy's inputs for E environments, on the policy's device: `Inputs` as tensors."""

    observations: Observation
    """`[E, *policy_shape]`, or by name for an observation of parts."""
    core_state: Tensor
    """`[E, core_size] float32`, the recurrent state; 0 where an episode begins."""
    last_actions: Tensor
    """`[E, *action shape]`, the previous step's actions; 0 where an episode begins."""
    last_rewards: Tensor
    """`[E] float32`, the previous step's rewards; 0 where an episode begins."""

    @classmethod
    def of(cls, inputs: Inputs, device: torch.device) -> InputTensors:
        """Copy inputs to a device; on a CPU the tensors share the arrays' memory."""
        return cls._make(map_tensors(tuple(inputs), lambda tensor: tensor.to(device)))

    def masked(self, values: Tensor, forbidden: float = -math.inf) -> Tensor:
        """Set the values `[E, num_actions]` of forbidden actions to `forbidden`."""
        return masked_values(values, action_mask(self.observations), forbidden)


class Policy:
    """A network that chooses actions. Actors and the evaluator load new parameters into it.

    A subclass defines `compute` and `decide`, or else `act` alone. With the first two, the
    inference server computes a batch on a GPU while it receives the requests of the next.
    """

    network: nn.Module
    device = torch.device("cpu")
    core_size: int = 0
    """Numbers in the recurrent state of one environment; 0: the policy is not recurrent."""
    loads_in_place = False
    """Whether `load` copies into the existing tensors on a CPU too; on a GPU it always does."""

    def compute(self, inputs: InputTensors) -> Mapping[str, Tensor]:
        """Run the network, without waiting for the device.

        A row of the outputs depends on its row of the inputs alone, since batches may be padded.
        A CUDA graph may record one call and repeat its operations later. So nothing may change
        from call to call but the inputs, the parameters, and the noise of noisy modules, which is
        drawn before.

        Returns:
            What `decide` needs, by name: tensors `[E, ...]` on the policy's device.
        """
        raise NotImplementedError(f"{type(self).__name__} must define compute and decide, or act")

    def decide(self, outputs: Arrays, inputs: Inputs, exploration: Exploration | None) -> Decision:
        """Choose actions from the outputs of `compute`, on the host.

        Args:
            outputs: of `compute`, as arrays.
            inputs: what they were computed from. The observations are valid during this call only.
            exploration: chooses the actions from the network's output; None: act greedily.
        """
        raise NotImplementedError(f"{type(self).__name__} must define compute and decide, or act")

    @torch.inference_mode()
    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        """Choose actions for E environments.

        Args:
            inputs: their observations, recurrent states, last actions and last rewards.
            exploration: chooses the actions from the network's output; None: act greedily.
        """
        resample_noise(self.network, noisy=exploration is not None)
        outputs = self.compute(InputTensors.of(inputs, self.device))
        arrays = {name: tensor.cpu().numpy() for name, tensor in outputs.items()}
        return self.decide(arrays, inputs, exploration)

    @property
    def decides_later(self) -> bool:
        """Whether `act` is `compute` and `decide`, so that other work may come between them."""
        return getattr(self.act, "__func__", None) is Policy.act

    def to(self, device: torch.device) -> None:
        """Move the policy to another device."""
        self.device = device
        self.network.to(device)

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Load published parameters; on a CPU the tensors are used without a copy.

        Raises:
            RuntimeError: the names or shapes do not match the network.
        """
        own = self.network.state_dict(keep_vars=True)
        fits = {n: t.shape for n, t in own.items()} == {n: t.shape for n, t in parameters.items()}
        if self.loads_in_place or self.device.type != "cpu" or not fits:
            self.network.load_state_dict(parameters)
            return
        for name, parameter in own.items():
            tensor = parameters[name]
            if tensor.stride() == parameter.stride() and tensor.dtype == parameter.dtype:
                parameter.data = tensor
            else:  # convolutions keep their own memory format, which computes faster
                parameter.data.copy_(tensor)
