"""Policy gradients: per-step losses of softmax policies."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from apex.ops.vtrace import log_probability


def policy_gradient_loss(
    logits: Tensor,
    actions: Tensor,
    advantages: Tensor,
    head_sizes: Sequence[int] | None = None,
) -> Tensor:
    """-A log pi(a|x), per step (Williams, 1992).

    Args:
        logits: `[..., N]`.
        actions: `[...] int64`, or `[..., heads]`.
        advantages: `[...]`, treated as constants.
        head_sizes: see `log_probability`.

    Returns:
        `[...]` losses.
    """
    assert logits.shape[:-1] == advantages.shape
    return -advantages.detach() * log_probability(logits, actions, head_sizes)


def entropy(logits: Tensor, head_sizes: Sequence[int] | None = None) -> Tensor:
    """-sum_a pi(a|x) log pi(a|x): `[..., N]` to `[...]`; of a factored policy, the heads' sum."""
    if head_sizes is not None:
        return torch.stack([entropy(h) for h in torch.split(logits, list(head_sizes), dim=-1)]).sum(
            dim=0
        )
    log_probabilities = torch.log_softmax(logits, dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1)
