"""Targets bootstrap from the best action that is allowed, by literal numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from apex.algos.apex_dqn import ApexDQN
from apex.algos.r2d2 import R2D2
from tests.support.batches import batch_of
from tests.support.builders import env_spec

SPEC = env_spec((3,), "float32", actions=3)


class Values(nn.Module):
    """A network of fixed action values."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.values = torch.tensor(values)

    def forward(self, observations: Tensor) -> Tensor:
        return self.values.expand(len(observations), -1)


def transition(*allowed: bool) -> dict[str, Tensor]:
    return {
        "observation": torch.zeros(1, 3), "next_observation": torch.ones(1, 3),
        "action": torch.tensor([0]), "n_step_return": torch.tensor([1.0]),
        "discount": torch.tensor([0.5]), "probability": torch.ones(1),
        "action_mask": torch.tensor([[True, True, True]]),
        "next_action_mask": torch.tensor([allowed]),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("allowed", "error"),
    # 1 + 0.5 x the target's value of the online network's best allowed action - 2
    [((True, True, True), 29.0), ((True, False, True), 14.0), ((True, False, False), 4.0)],
)
def test_double_q_learning_selects_among_the_allowed_actions(allowed, error):
    algorithm = ApexDQN(ApexDQN.Config(), SPEC)
    online, target = Values(2.0, 9.0, 5.0), Values(10.0, 60.0, 30.0)
    found = algorithm.td_error(batch_of(transition(*allowed)), online, target)
    errors = found[0] if isinstance(found, tuple) else found
    assert errors.tolist() == [error]


def test_r2d2_selects_among_the_allowed_actions_of_each_row():
    config = R2D2.Config(burn_in=0, unroll_length=1, overlap=0, n_step=1)
    algorithm = R2D2(config, SPEC)
    ones = torch.ones(1, 2)
    batch = batch_of(
        {
            "observation": torch.zeros(1, 2, 3), "action": torch.zeros(1, 2, dtype=torch.int32),
            "reward": ones, "discount": 0.5 * ones, "is_first": ones > 1, "is_last": ones > 1,
            "last_action": torch.zeros(1, dtype=torch.int32), "last_reward": torch.zeros(1),
            "probability": torch.ones(1),
            "action_mask": torch.tensor([[[True, True, True], [True, False, True]]]),
        }
    )  # fmt: skip
    q = torch.tensor([2.0, 9.0, 5.0]).expand(1, 2, 3)
    target_q = torch.tensor([0.0, 3.0, 1.001]).expand(1, 2, 3)  # h(3) = 1.001 + 0.002
    errors, counts = algorithm.td_error(batch, q, target_q)
    # h^-1(1.001) is 2.998: 1 + 0.5 x 2.998 = 2.499; h(2.499) = sqrt(3.499) - 1 + 0.0025 = 0.8731
    assert errors.tolist() == [pytest.approx([0.8731 - 2.0], abs=2e-3)]
    assert counts.tolist() == [[True]]
