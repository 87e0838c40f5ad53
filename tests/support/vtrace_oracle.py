"""V-trace written as loops, as in its paper."""

from __future__ import annotations


def vtrace_sums(rho, rewards, gammas, values, is_last, rho_bar, c_bar):
    """v_s = V(x_s) + sum_t (prod_{s<=i<t} gamma_i c_i) rho_t (r_t + gamma_t V(x_{t+1}) - V(x_t)),
    over the steps of s's own episode (Espeholt et al., 2018, equation 1), for one sequence."""
    length = len(rewards)
    targets = []
    for s in range(length):
        v = values[s]
        for t in range(s, length):
            if is_last[t]:
                break
            product = 1.0
            for i in range(s, t):
                product *= gammas[i] * min(c_bar, rho[i])
            delta = rewards[t] + gammas[t] * values[t + 1] - values[t]
            v += product * min(rho_bar, rho[t]) * delta
        targets.append(v)
    following = [*targets[1:], values[length]]
    advantages = [
        0.0 if is_last[s]
        else min(rho_bar, rho[s]) * (rewards[s] + gammas[s] * following[s] - values[s])
        for s in range(length)
    ]  # fmt: skip
    return targets, advantages
