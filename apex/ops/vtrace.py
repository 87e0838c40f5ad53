"""V-trace: off-policy corrected values and advantages (Espeholt et al., 2018, section 4.1)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class VTrace(NamedTuple):
    """What V-trace gives, `[B, T]` each, without gradients."""

    targets: Tensor
    """v_s, towards which values are learned."""
    advantages: Tensor
    """rho_s (r_s + gamma_s v_{s+1} - V(x_s)), by which the policy is learned."""


def importance_ratios(behaviour_logits: Tensor, target_logits: Tensor, actions: Tensor) -> Tensor:
    """pi(a|x) / mu(a|x) of softmax policies.

    Args:
        behaviour_logits: `[..., A]`, of mu, which acted.
        target_logits: `[..., A]`, of pi, which learns.
        actions: `[...] int64`.

    Returns:
        `[...]`.
    """
    assert behaviour_logits.shape == target_logits.shape and actions.dtype == torch.int64
    log_pi, log_mu = (
        log_probability(target_logits, actions),
        log_probability(behaviour_logits, actions),
    )
    return torch.exp(log_pi - log_mu)


def log_probability(logits: Tensor, actions: Tensor) -> Tensor:
    """log softmax(logits)[a]: `[..., A]` and `[...] int64` to `[...]`."""
    log_probabilities = torch.log_softmax(logits, dim=-1)
    return log_probabilities.gather(-1, actions.unsqueeze(-1)).squeeze(-1)


def vtrace(
    ratios: Tensor,
    rewards: Tensor,
    discounts: Tensor,
    values: Tensor,
    is_last: Tensor,
    *,
    rho_clip: float = 1.0,
    c_clip: float = 1.0,
) -> VTrace:
    """v_s = V(x_s) + sum_{t >= s} gamma^{t-s} (prod_{s <= i < t} c_i) delta_t V.

    With delta_t V = rho_t (r_t + gamma_t V(x_{t+1}) - V(x_t)), rho_t = min(rho_clip, ratio_t) and
    c_t = min(c_clip, ratio_t): equation 1, by the recursion of remark 1.

    At the final observation of a truncated episode nothing was done: its v is V(x) itself, so that
    the episode's steps bootstrap from there and nothing of the next episode reaches them.

    Args:
        ratios: `[B, T]`, pi(a|x) / mu(a|x).
        rewards: `[B, T]`.
        discounts: `[B, T]`, gamma, or 0 where the episode was terminated.
        values: `[B, T + 1]`, V(x), the last one for the bootstrap.
        is_last: `[B, T] bool`, the final observations of truncated episodes.
        rho_clip: rho-bar; decides which policy's value is learned.
        c_clip: c-bar; at most `rho_clip`.
    """
    assert ratios.shape == rewards.shape == discounts.shape == is_last.shape
    assert values.shape == (len(ratios), ratios.shape[1] + 1) and is_last.dtype == torch.bool
    with torch.no_grad():
        done = ~is_last
        rhos = ratios.clamp(max=rho_clip) * done
        carried = discounts * ratios.clamp(max=c_clip) * done
        deltas = rhos * (rewards + discounts * values[:, 1:] - values[:, :-1])
        correction = torch.zeros_like(values[:, 0])
        corrections = []
        for t in reversed(range(ratios.shape[1])):
            correction = deltas[:, t] + carried[:, t] * correction
            corrections.append(correction)
        targets = values[:, :-1] + torch.stack(corrections[::-1], dim=1)
        next_targets = torch.cat([targets[:, 1:], values[:, -1:]], dim=1)
        advantages = rhos * (rewards + discounts * next_targets - values[:, :-1])
    return VTrace(targets, advantages)
