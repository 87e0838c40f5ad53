"""Policy gradients: per-step losses of softmax policies."""

from __future__ import annotations

import torch
from torch import Tensor

from apex.ops.vtrace import log_probability


def policy_gradient_loss(logits: Tensor, actions: Tensor, advantages: Tensor) -> Tensor:
    """-A log pi(a|x), per step (Williams, 1992).

    Args:
        logits: `[..., N]`.
        actions: `[...] int64`.
        advantages: `[...]`, treated as constants.

    Returns:
        `[...]` losses.
    """
    assert logits.shape[:-1] == actions.shape == advantages.shape
    return -advantages.detach() * log_probability(logits, actions)


def entropy(logits: Tensor) -> Tensor:
    """-sum_a pi(a|x) log pi(a|x): `[..., N]` to `[...]`."""
    log_probabilities = torch.log_softmax(logits, dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
