"""Size of a network's activations, found by letting its policy act once on the CPU."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

from apex.acting.agent import Agent
from apex.acting.decisions import Inputs
from apex.algos.base import Algorithm
from apex.algos.sequence_batches import SequenceAlgorithm

FLOAT_BYTES = 4


def activation_bytes(algorithm: Algorithm) -> int:
    """Bytes of the observations as floats and of all layers' outputs, for one item."""
    policy, spec = algorithm.policy(), algorithm.spec
    numbers = sum(
        math.prod(part.shape) * (spec.frame_stack if part.kind == "image" else 1)
        for part in spec.all_parts
    )

    def count(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal numbers
        numbers += sum(tensor.numel() for tensor in _tensors(output))

    layers = [module for module in policy.network.modules() if not any(module.children())]
    handles = [layer.register_forward_hook(count) for layer in layers]
    agent = Agent(spec, 1, policy.core_size, clip_rewards=False)
    agent.begin(spec.zero_observations(1))
    policy.act(Inputs.joined([agent.inputs]), None)
    for handle in handles:
        handle.remove()
    rows = algorithm.layout().length if isinstance(algorithm, SequenceAlgorithm) else 1
    return FLOAT_BYTES * rows * numbers


def _tensors(output: Any) -> list[Tensor]:
    """The tensors of a layer's output; an LSTM returns nested tuples."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, tuple):
        return [tensor for part in output for tensor in _tensors(part)]
    return []
