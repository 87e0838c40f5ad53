"""RMSProp as in TensorFlow: epsilon inside the root, mean square 1 at the start."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from apex.algos.optimization import Optimization, OptimizerConfig
from apex.ops.rmsprop import RMSProp


def test_first_step_has_the_length_of_the_formula() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    optimizer = RMSProp([parameter], lr=torch.tensor(0.1), decay=0.95, epsilon=0.01)
    parameter.grad = torch.tensor([2.0, -1.0])
    optimizer.step()
    # E[g^2] = 0.95 + 0.05 * 4 = 1.15, E[g] = 0.1: 1 - 0.1 * 2 / sqrt(1.15 - 0.01 + 0.01)
    # E[g^2] = 0.95 + 0.05 = 1, E[g] = -0.05:      1 + 0.1 * 1 / sqrt(1 - 0.0025 + 0.01)
    assert parameter.tolist() == pytest.approx([0.81349904, 1.09962699], rel=1e-6)
    parameter.grad = torch.tensor([2.0, -1.0])
    optimizer.step()
    # E[g^2] = 0.95 * 1.15 + 0.2 = 1.2925, E[g] = 0.195: 0.2 / sqrt(1.2925 - 0.038025 + 0.01)
    # E[g^2] = 1, E[g] = -0.0975:                        0.1 / sqrt(1 - 0.00950625 + 0.01)
    assert parameter.tolist() == pytest.approx([0.63564055, 1.19960221], rel=1e-6)


def test_first_steps_of_small_gradients_match_the_papers_length() -> None:
    """A mean square of zero at the start would make the first one 440 times as long."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = RMSProp([parameter], lr=torch.tensor(1.0), decay=0.95, epsilon=1.5e-7)
    positions = [0.0]
    for _ in range(2):
        parameter.grad = torch.tensor([0.01])
        optimizer.step()
        positions.append(parameter.item())
    # 0.01 / sqrt(0.95 + 0.05 * 1e-4 - 2.5e-7 + 1.5e-7), then 0.95^2 instead of 0.95.
    steps = [before - after for before, after in itertools.pairwise(positions)]
    assert steps == pytest.approx([0.010259757, 0.010526261], rel=1e-5)


def test_uncentered_rmsprop_uses_the_mean_square_alone() -> None:
    """With the decay and epsilon of IMPALA."""
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    optimizer = RMSProp([parameter], lr=torch.tensor(0.1), decay=0.99, epsilon=0.01, centered=False)
    parameter.grad = torch.tensor([3.0])
    optimizer.step()
    # E[g^2] = 0.99 + 0.01 * 9 = 1.08: 1 - 0.1 * 3 / sqrt(1.09)
    assert parameter.tolist() == pytest.approx([0.71265214], rel=1e-6)
    assert optimizer.state[parameter].keys() == {"mean_square"}


AVERAGES = {"mean_square": torch.tensor([0.2, 0.05]), "mean": torch.tensor([0.1, -0.05])}
"""After one step with the gradients 2 and -1, from zeros, as apex 0.1 saved them."""


def test_averages_of_an_older_checkpoint_are_kept() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
    network = torch.nn.Module()
    network.register_parameter("weight", parameter)
    config = OptimizerConfig(learning_rate=0.1, optimizer_epsilon=0.01)
    optimization = Optimization(network, config)
    saved = {"lr": 0.1, "decay": 0.95, "epsilon": 0.01, "centered": True, "params": [0]}
    optimization.load_state_dict(
        {
            "optimizer": {"state": {0: AVERAGES}, "param_groups": [saved]},
            "optimizer_name": "rmsprop", "updates": 1, "skipped": 0,
        }
    )  # fmt: skip
    optimization.schedule(updates=1)
    optimization.step((parameter * torch.tensor([2.0, -1.0])).sum())
    # E[g^2] = 0.95 * 0.2 + 0.05 * 4 = 0.39, E[g] = 0.195: 0.2 / sqrt(0.39 - 0.038025 + 0.01)
    # E[g^2] = 0.0975, E[g] = -0.0975: 0.1 / sqrt(0.0975 - 0.00950625 + 0.01)
    assert parameter.tolist() == pytest.approx([0.66757727, 1.31944813], rel=1e-6)


def test_centering_enabled_on_resume_starts_with_a_mean_of_zero() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0]))
    plain = RMSProp([parameter], lr=torch.tensor(0.1), decay=0.5, epsilon=0.01, centered=False)
    parameter.grad = torch.tensor([1.0])
    plain.step()
    centered = RMSProp([parameter], lr=torch.tensor(0.1), decay=0.5, epsilon=0.01)
    groups = centered.state_dict()["param_groups"]
    centered.load_state_dict({"state": plain.state_dict()["state"], "param_groups": groups})
    before = parameter.item()
    centered.step()
    # E[g^2] = 1, E[g] = 0.5: 0.1 / sqrt(1 - 0.25 + 0.01)
    assert before - parameter.item() == pytest.approx(0.11470787, rel=1e-5)


@pytest.mark.parametrize("gradient", [2.0, 3.3, 7.3])
def test_constant_gradient_never_makes_the_variance_negative(gradient: float) -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = RMSProp([parameter], lr=torch.tensor(1e-4), decay=0.95, epsilon=1.5e-7)
    for _ in range(500):
        parameter.grad = torch.full((3,), gradient)
        optimizer.step()
    assert torch.isfinite(parameter).all() and (parameter < 0).all()


def test_small_gradient_makes_a_small_step() -> None:
    """With epsilon outside the root this step would be thousands of times as long."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = RMSProp([parameter], lr=torch.tensor(1.0), decay=0.95, epsilon=1.5e-7)
    for _ in range(600):  # the start has decayed: 0.95^600 = 4e-14
        before = parameter.item()
        parameter.grad = torch.tensor([1e-5])
        optimizer.step()
    assert before - parameter.item() == pytest.approx(1e-5 / math.sqrt(1.5e-7), rel=1e-3)
