"""Q-learning equations against literal numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from apex.ops.double_q_learning import (
    double_q_td_error,
    dueling_values,
    huber_loss,
    importance_weights,
    squared_loss,
)

torch.set_num_threads(1)


def test_online_selects_and_target_evaluates():
    errors = double_q_td_error(
        q_tm1=torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        a_tm1=torch.tensor([0, 2]),
        g_t=torch.tensor([0.5, -1.0]),
        discount_t=torch.tensor([0.5, 0.0]),
        q_t_target=torch.tensor([[100.0, 7.0, 50.0], [9.0, 9.0, 9.0]]),
        q_t_selector=torch.tensor([[0.0, 8.0, 1.0], [1.0, 0.0, 0.0]]),
    )
    # 0.5 + 0.5 * 7 - 1 (plain Q-learning: 0.5 + 0.5 * 100 - 1); -1 + 0 - 6
    assert errors.tolist() == [3.0, -7.0]


def test_td_error_is_not_clipped():
    errors = double_q_td_error(
        torch.tensor([[0.0, 0.0]]), torch.tensor([1]), torch.tensor([1000.0]),
        torch.tensor([0.9]), torch.tensor([[10.0, 0.0]]), torch.tensor([[1.0, 0.0]]),
    )  # fmt: skip
    assert errors.item() == pytest.approx(1009.0)


def test_gradient_flows_into_the_chosen_value_alone():
    q_tm1, target, selector = (torch.randn(2, 3, requires_grad=True) for _ in range(3))
    errors = double_q_td_error(
        q_tm1, torch.tensor([1, 0]), torch.zeros(2), torch.ones(2), target, selector
    )
    errors.sum().backward()
    assert q_tm1.grad.tolist() == [[0.0, -1.0, 0.0], [-1.0, 0.0, 0.0]]
    assert target.grad is None and selector.grad is None


def test_weights_are_normalised_by_the_batchs_maximum():
    weights = importance_weights(torch.tensor([0.25, 0.5, 0.0625]), 0.5)
    # (1/4)^-1/2 = 2, (1/2)^-1/2 = 1.4142, (1/16)^-1/2 = 4, over 4
    assert weights.tolist() == pytest.approx([0.5, 0.35355339, 1.0])


def test_weights_match_the_papers_formula_for_any_table_size():
    rng = np.random.default_rng(0)
    for size in (10, 10**6):
        probabilities = rng.random(64) / size
        unnormalised = (size * probabilities) ** -0.4
        expected = unnormalised / unnormalised.max()
        weights = importance_weights(torch.from_numpy(probabilities), 0.4)
        np.testing.assert_allclose(weights.numpy(), expected)


def test_weights_are_one_when_the_exponent_is_zero():
    assert importance_weights(torch.tensor([0.1, 0.9]), 0.0).tolist() == [1.0, 1.0]


def test_squared_loss_is_half_the_square():
    assert squared_loss(torch.tensor([-3.0, 0.5])).tolist() == [4.5, 0.125]


def test_huber_loss_is_linear_beyond_one():
    losses = huber_loss(torch.tensor([-3.0, -1.0, 0.5, 1.0, 2.0]))
    assert losses.tolist() == [2.5, 0.5, 0.125, 0.5, 1.5]


def test_huber_gradient_is_clipped_to_one():
    errors = torch.tensor([-3.0, 0.5, 2.0], requires_grad=True)
    huber_loss(errors).sum().backward()
    assert errors.grad.tolist() == [-1.0, 0.5, 1.0]


def test_dueling_mean_is_taken_in_each_row():
    values = dueling_values(
        torch.tensor([[10.0], [20.0]]), torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 30.0]])
    )
    assert values.tolist() == [[9.0, 10.0, 11.0], [10.0, 10.0, 40.0]]
