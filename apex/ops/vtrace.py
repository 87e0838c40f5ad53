"""V-trace: off-policy corrected values and advantages (Espeholt et al., 2018, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class VTrace(NamedTuple):
    """Results of V-trace, `[B, T]` each, without gradients."""

    targets: Tensor
    """v_s, the targets of the value function."""
    advantages: Tensor
    """rho_s (r_s + gamma_s v_{s+1} - V(x_s)), the advantages in the policy gradient."""


def importance_ratios(
    behaviour_logits: Tensor,
    target_logits: Tensor,
    actions: Tensor,
    head_sizes: Sequence[int] | None = None,
) -> Tensor:
    """pi(a|x) / mu(a|x) of softmax policies.

    Args:
        behaviour_logits: `[..., A]`, logits of mu, the behaviour policy.
        target_logits: `[..., A]`, logits of pi, the learned policy.
        actions: `[...] int64`, or `[..., heads]`.
        head_sizes: see `log_probability`.

    Returns:
        `[...]` ratios.
    """
    assert behaviour_logits.shape == target_logits.shape and actions.dtype == torch.int64
    log_pi, log_mu = (
        log_probability(logits, actions, head_sizes) for logits in (target_logits, behaviour_logits)
    )
    return torch.exp(log_pi - log_mu)


def log_probability(
    logits: Tensor, actions: Tensor, head_sizes: Sequence[int] | None = None
) -> Tensor:
    """log softmax(logits)[a]: `[..., A]` and `[...] int64` to `[...]`.

    Args:
        logits: `[..., A]`.
        actions: `[...] int64`; with heads `[..., heads]`, each from 0.
        head_sizes: numbers of values of the integers that make up an action, which are independent
            (a factored policy): the log-probabilities are summed. None: an action is one integer.
    """
    if head_sizes is not None:
        heads = zip(torch.split(logits, list(head_sizes), dim=-1), actions.unbind(-1))
        return torch.stack([log_probability(*head) for head in heads]).sum(dim=0)
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

    The final observation of a truncated episode has no action: its v is V(x), so the episode's
    steps bootstrap from it and are independent of the next episode.

    Args:
        ratios: `[B, T]`, pi(a|x) / mu(a|x).
        rewards: `[B, T]`.
        discounts: `[B, T]`, gamma, or 0 where the episode was terminated.
        values: `[B, T + 1]`, V(x); the last one is the bootstrap value.
        is_last: `[B, T] bool`, the final observations of truncated episodes.
        rho_clip: rho-bar; determines which policy's value function is learned.
        c_clip: c-bar; at most `rho_clip`.
    """
    assert ratios.shape == rewards.shape == discounts.shape == is_last.shape
    assert values.shape == (len(ratios), ratios.shape[1] + 1) and is_last.dtype == torch.bool
    with torch.no_grad():
        has_action = ~is_last
        rhos = ratios.clamp(max=rho_clip) * has_action
        traces = discounts * ratios.clamp(max=c_clip) * has_action
        deltas = rhos * (rewards + discounts * values[:, 1:] - values[:, :-1])
        correction = torch.zeros_like(values[:, 0])
        corrections = []
        for t in reversed(range(ratios.shape[1])):
            correction = deltas[:, t] + traces[:, t] * correction
            corrections.append(correction)
        targets = values[:, :-1] + torch.stack(corrections[::-1], dim=1)
        next_targets = torch.cat([targets[:, 1:], values[:, -1:]], dim=1)
        advantages = rhos * (rewards + discounts * next_targets - values[:, :-1])
    return VTrace(targets, advantages)
