"""Q-learning: TD errors, importance weights and losses."""

from __future__ import annotations

import torch
from torch import Tensor


def double_q_td_error(
    q_tm1: Tensor,
    a_tm1: Tensor,
    g_t: Tensor,
    discount_t: Tensor,
    q_t_target: Tensor,
    q_t_selector: Tensor,
) -> Tensor:
    """delta = G + discount * Q_target(s_t, argmax_a Q_online(s_t, a)) - Q_online(s_tm1, a_tm1).

    The online network selects the bootstrap action, the target network evaluates it (van Hasselt
    et al., 2016, equation 4; n-step as in Horgan et al., 2018, section 3).

    Args:
        q_tm1: `[B, A]`, online values at the first observation; gradients flow only into these.
        a_tm1: `[B] int64`, the actions taken.
        g_t: `[B]`, n-step returns.
        discount_t: `[B]`, gamma^n, or 0 after a termination.
        q_t_target: `[B, A]`, target values at the bootstrap observation.
        q_t_selector: `[B, A]`, online values at the bootstrap observation.

    Returns:
        `[B]` TD errors, not clipped.
    """
    assert q_tm1.ndim == q_t_target.ndim == q_t_selector.ndim == 2
    assert a_tm1.ndim == g_t.ndim == discount_t.ndim == 1 and a_tm1.dtype == torch.int64
    best_a_t = q_t_selector.argmax(dim=1, keepdim=True)
    bootstrap = q_t_target.gather(1, best_a_t).squeeze(1)
    target = (g_t + discount_t * bootstrap).detach()
    return target - q_tm1.gather(1, a_tm1.unsqueeze(1)).squeeze(1)


def importance_weights(probabilities: Tensor, exponent: float) -> Tensor:
    """w_i = (N * P(i))^-beta / max_j w_j, the maximum over the batch; N cancels out.

    Schaul et al., 2016, section 3.4.

    Args:
        probabilities: `[B]`, P(i) at the time of sampling, all above 0.
        exponent: beta.

    Returns:
        `[B]` weights in (0, 1].
    """
    assert probabilities.ndim == 1
    return (probabilities / probabilities.min()).pow(-exponent)


def squared_loss(td_errors: Tensor) -> Tensor:
    """delta^2 / 2 of each TD error; `[B]` to `[B]`."""
    return 0.5 * td_errors.square()


def huber_loss(td_errors: Tensor) -> Tensor:
    """delta^2 / 2 if |delta| <= 1, else |delta| - 1/2, of each TD error; `[B]` to `[B]`."""
    absolute = td_errors.abs()
    return torch.where(absolute <= 1.0, 0.5 * td_errors.square(), absolute - 0.5)


def dueling_values(state_value: Tensor, advantages: Tensor) -> Tensor:
    """Q(s, a) = V(s) + A(s, a) - mean_a' A(s, a') (Wang et al., 2016, equation 9).

    Args:
        state_value: `[B, 1]`.
        advantages: `[B, A]`.

    Returns:
        `[B, A]` action values.
    """
    assert state_value.shape == (len(advantages), 1)
    return state_value + advantages - advantages.mean(dim=1, keepdim=True)


def n_step_targets(
    rewards: Tensor, discounts: Tensor, is_last: Tensor, values: Tensor, n: int
) -> Tensor:
    """G_t = sum_{k < n} gamma^k r_{t+k} + gamma^n V(x_{t+n}) for each step t of sequences.

    The final observation of a truncated episode has no action: sums that reach it end there with
    its V(x).

    Args:
        rewards: `[B, L]`.
        discounts: `[B, L]`, gamma, or 0 where the episode was terminated.
        is_last: `[B, L] bool`, the final observations of truncated episodes.
        values: `[B, L]`, V(x).
        n: number of rewards in each target.

    Returns:
        `[B, L - n]` targets.
    """
    assert rewards.shape == discounts.shape == is_last.shape == values.shape
    targets = values
    for _ in range(n):
        length = targets.shape[1] - 1
        stepped = rewards[:, :length] + discounts[:, :length] * targets[:, 1:]
        targets = torch.where(is_last[:, :length], values[:, :length], stepped)
    return targets


def sequence_priorities(td_errors: Tensor, learned: Tensor, eta: float) -> Tensor:
    """eta max_t |delta_t| + (1 - eta) mean_t |delta_t| (Kapturowski et al., 2019, section 2.3).

    Args:
        td_errors: `[B, T]`.
        learned: `[B, T] bool`, the steps that count.
        eta: weight of the maximum.

    Returns:
        `[B]` priorities; 0 for a sequence in which no step counts.
    """
    absolute = td_errors.abs() * learned
    mean = absolute.sum(dim=1) / learned.sum(dim=1).clamp(min=1)
    return eta * absolute.amax(dim=1) + (1.0 - eta) * mean
