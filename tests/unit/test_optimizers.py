"""Centered RMSProp with epsilon inside the root."""

from __future__ import annotations

import math

import pytest
import torch

from apex.ops.optimizers import RMSProp


def test_first_step_has_the_length_of_the_formula() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = RMSProp([parameter], lr=torch.tensor(0.1), decay=0.95, epsilon=0.01)
    parameter.grad = torch.tensor([2.0, -1.0])
    optimizer.step()
    # E[g^2] = 0.05 * 4 = 0.2, E[g] = 0.1: 1 - 0.1 * 2 / sqrt(0.2 - 0.01 + 0.01)
    # E[g^2] = 0.05,           E[g] = -0.05: 1 + 0.1 / sqrt(0.05 - 0.0025 + 0.01)
    expected = [1 - 0.2 / math.sqrt(0.2), 1 + 0.1 / math.sqrt(0.0575)]
    assert parameter.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("gradient", [2.0, 3.3, 7.3])
def test_a_constant_gradient_never_makes_the_variance_negative(gradient: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = RMSProp([parameter], lr=torch.tensor(1e-4), decay=0.95, epsilon=1.5e-7)
    for _ in range(500):
        parameter.grad = torch.full((3,), gradient)
        optimizer.step()
    assert torch.isfinite(parameter).all() and (parameter < 0).all()


def test_a_small_gradient_makes_a_small_step() -> None:
    """With epsilon outside the root this step would be 50 times as long."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = RMSProp([parameter], lr=torch.tensor(1.0), decay=0.95, epsilon=1.5e-7)
    parameter.grad = torch.tensor([1e-5])
    optimizer.step()
    assert -parameter.item() == pytest.approx(1e-5 / math.sqrt(1.5e-7), rel=1e-3)
