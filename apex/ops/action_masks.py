"""Action masks: values and logits of the actions that are allowed."""

from __future__ import annotations

import math

from torch import Tensor

FORBIDDEN_LOGIT = -1e9
"""Logit of a forbidden action: its probability is 0 in float32, and so is p log p."""


def masked_values(values: Tensor, mask: Tensor | None, forbidden: float = -math.inf) -> Tensor:
    """Set the values of forbidden actions to `forbidden`.

    Args:
        values: `[..., num_actions]`, action values or logits.
        mask: `[..., num_actions]`, not 0 for each allowed action; None: all are allowed.
        forbidden: -inf for action values, of which the largest is chosen; `FORBIDDEN_LOGIT` for
            logits.

    Returns:
        `[..., num_actions]`.
    """
    return values if mask is None else values.masked_fill(mask == 0, forbidden)
