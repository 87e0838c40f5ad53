"""Deterministic policy gradients: the loss of an actor, and the TD error of its critic."""

from __future__ import annotations

import torch
from torch import Tensor


def deterministic_policy_gradient_loss(
    actions: Tensor, value_gradients: Tensor, clip: float
) -> Tensor:
    """A loss whose gradient with respect to the actions is -clip(dQ/da).

    Silver et al., 2014, equation 9; clipped elementwise as in Horgan et al., 2018, appendix D. The
    gradient also never points beyond the action bounds, as that would drive the tanh into
    saturation, from which it rarely recovers.

    Args:
        actions: `[B, A]`, the policy's actions in [-1, 1]; gradients flow only into these.
        value_gradients: `[B, A]`, dQ(s, a)/da at these actions.
        clip: largest magnitude of an element.

    Returns:
        `[B]` losses.
    """
    assert actions.shape == value_gradients.shape and actions.ndim == 2
    step = value_gradients.clamp(-clip, clip)
    target = (actions + step).clamp(-1.0, 1.0).detach()
    return 0.5 * (target - actions).square().sum(dim=1)


def td_error(q_tm1: Tensor, g_t: Tensor, discount_t: Tensor, q_t: Tensor) -> Tensor:
    """delta = G + discount * Q_target(s_t, pi_target(s_t)) - Q(s_tm1, a_tm1).

    Lillicrap et al., 2016, equation 4; n-step as in Horgan et al., 2018, section 3.

    Args:
        q_tm1: `[B]`, values of the actions taken; gradients flow only into these.
        g_t: `[B]`, n-step returns.
        discount_t: `[B]`, gamma^n, or 0 after a termination.
        q_t: `[B]`, target values at the bootstrap observation.

    Returns:
        `[B]` TD errors, not clipped.
    """
    assert q_tm1.shape == g_t.shape == discount_t.shape == q_t.shape and q_tm1.ndim == 1
    return torch.sub((g_t + discount_t * q_t).detach(), q_tm1)
