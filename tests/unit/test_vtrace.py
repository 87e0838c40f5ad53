"""V-trace against literal numbers and the paper's sums written as loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from apex.ops.policy_gradient import entropy, policy_gradient_loss
from apex.ops.vtrace import importance_ratios, vtrace
from tests.support.vtrace_oracle import vtrace_sums

torch.set_num_threads(1)


def of(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(
    ("seed", "clips"), list(itertools.product(range(5), ((1.0, 1.0), (2.0, 0.5), (0.7, 0.7))))
)
def test_targets_and_advantages_are_the_papers_sums(seed, clips):
    rng = np.random.default_rng(seed)
    shape = (4, 12)
    ratios = np.exp(rng.normal(size=shape))
    rewards, values = rng.normal(size=shape), rng.normal(size=(4, 13))
    gammas = np.where(rng.random(shape) < 0.2, 0.0, 0.9)
    is_last = rng.random(shape) < 0.15
    found = vtrace(
        of(ratios), of(rewards), of(gammas), of(values), torch.tensor(is_last),
        rho_clip=clips[0], c_clip=clips[1],
    )  # fmt: skip
    for row in range(4):
        targets, advantages = vtrace_sums(
            ratios[row], rewards[row], gammas[row], values[row], is_last[row], *clips
        )
        np.testing.assert_allclose(found.targets[row], targets, rtol=1e-12)
        np.testing.assert_allclose(found.advantages[row], advantages, rtol=1e-12)
    assert is_last.any() and (gammas == 0).any() and (ratios > 2).any()


def test_vtrace_of_literal_numbers():
    found = vtrace(
        of([[2.0, 0.5]]), of([[1.0, 2.0]]), of([[0.5, 0.5]]), of([[4.0, 2.0, 8.0]]),
        torch.tensor([[False, False]]),
    )  # fmt: skip
    # delta_1 = 0.5 (2 + 0.5 * 8 - 2) = 2, v_1 = 4; delta_0 = 1 + 0.5 * 2 - 4 = -2,
    # v_0 = 4 - 2 + 0.5 * 1 * 2 = 3; advantages 1 + 0.5 * 4 - 4 and 0.5 (2 + 0.5 * 8 - 2)
    assert found.targets.tolist() == [[3.0, 4.0]]
    assert found.advantages.tolist() == [[-1.0, 2.0]]


def test_on_policy_targets_are_the_n_step_bellman_targets():
    """With pi = mu and clips of at least 1, v_s = sum gamma^k r_{s+k} + gamma^n V(x_{s+n})."""
    rng = np.random.default_rng(0)
    rewards, values = rng.normal(size=(3, 6)), rng.normal(size=(3, 7))
    found = vtrace(
        torch.ones(3, 6, dtype=torch.float64), of(rewards),
        torch.full((3, 6), 0.9, dtype=torch.float64), of(values),
        torch.zeros(3, 6, dtype=torch.bool),
    )  # fmt: skip
    for s in range(6):
        n = 6 - s
        bellman = sum(0.9**k * rewards[:, s + k] for k in range(n)) + 0.9**n * values[:, 6]
        np.testing.assert_allclose(found.targets[:, s], bellman, rtol=1e-12)


def test_truncated_episode_bootstraps_from_its_final_observation_and_a_terminated_one_does_not():
    ones, nothing = of([[1.0, 1.0, 1.0]]), torch.tensor([[False, False, False]])
    values = of([[10.0, 20.0, 40.0, 80.0]])
    truncated = vtrace(
        ones, ones, of([[0.5, 0.0, 0.5]]), values, torch.tensor([[False, True, False]])
    )
    assert truncated.targets.tolist() == [[1 + 0.5 * 20.0, 20.0, 1 + 0.5 * 80.0]]
    assert truncated.advantages.tolist() == [[1.0, 0.0, 1.0]]
    terminated = vtrace(ones, ones, of([[0.5, 0.0, 0.5]]), values, nothing)
    assert terminated.targets.tolist() == [[1 + 0.5 * 1.0, 1.0, 41.0]]


def test_no_gradient_flows_through_targets():
    values = torch.zeros(1, 3, requires_grad=True)
    ones = torch.ones(1, 2)
    found = vtrace(ones, ones, ones, values, torch.zeros(1, 2, dtype=torch.bool))
    assert not found.targets.requires_grad and not found.advantages.requires_grad


def test_importance_ratios_of_literal_numbers():
    uniform, skewed = of([[0.0, 0.0]]), torch.log(of([[3.0, 1.0]]))
    assert importance_ratios(uniform, skewed, torch.tensor([0])).item() == pytest.approx(1.5)
    assert importance_ratios(uniform, skewed, torch.tensor([1])).item() == pytest.approx(0.5)
    assert importance_ratios(skewed, skewed + 7.0, torch.tensor([1])).item() == pytest.approx(1.0)


def test_policy_gradient_and_entropy_of_literal_numbers():
    logits = torch.log(of([[3.0, 1.0]])).requires_grad_()
    loss = policy_gradient_loss(logits, torch.tensor([1]), of([2.0]))
    assert loss.item() == pytest.approx(-2.0 * np.log(0.25))
    loss.sum().backward()
    # d(-A log pi(a)) / d logit_b = -A (1[a = b] - pi(b))
    assert logits.grad.tolist()[0] == pytest.approx([1.5, -1.5])
    bits = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert entropy(logits).item() == pytest.approx(bits)
    assert entropy(torch.zeros(1, 4)).item() == pytest.approx(np.log(4))
