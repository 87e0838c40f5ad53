"""What a trained policy is given of observations of named parts."""

from __future__ import annotations

from types import SimpleNamespace

import gymnasium as gym
import msgspec
import numpy as np
import pytest

from apex.envs.spaces import env_spec
from apex.envs.spec import EnvSpec
from apex.errors import EnvError, UsageError
from apex.evaluation.trained_policy import TrainedPolicy

SPEC = env_spec(
    gym.spaces.Dict(
        {
            "action_mask": gym.spaces.MultiBinary(3),
            "card": gym.spaces.Discrete(4),
            "seen": gym.spaces.Box(-1.0, 1.0, (2,), np.float32),
        }
    ),
    gym.spaces.Discrete(3),
    "Cards-v0",
    0,
)
ONE = {"action_mask": [1, 0, 1], "card": 3, "seen": [0.5, 0.25]}


def policy_of(spec: EnvSpec) -> TrainedPolicy:
    """A policy that knows what it was trained on, and has no network."""
    policy = TrainedPolicy.__new__(TrainedPolicy)
    policy.manifest = SimpleNamespace(env=spec)  # type: ignore[assignment]
    return policy


def test_observation_of_one_environment_may_omit_the_axis_of_environments():
    batch, single = policy_of(SPEC)._batch(ONE)  # type: ignore[arg-type]
    assert single
    assert {name: array.tolist() for name, array in batch.items()} == {
        "action_mask": [[1, 0, 1]], "card": [3], "seen": [[0.5, 0.25]],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"card": 4}, "'card' with choices that exist, or a mask that allows an action, got 4"),
        ({"action_mask": [0, 0, 0]}, r"'action_mask' with choices.*got \[0, 0, 0\]"),
        ({"card": [3]}, "expected all parts of an observation for the same environments"),
        ({"seen": [[0.5, 0.25]] * 2}, "expected all parts of an observation for the same env"),
    ],
)
def test_part_that_the_network_cannot_read_is_a_mistake_of_the_caller(change, message):
    with pytest.raises(UsageError, match=message):
        policy_of(SPEC)._batch({**ONE, **change})


def test_policy_does_not_fit_an_environment_with_other_choices():
    policy_of(SPEC).check_fits(msgspec.structs.replace(SPEC, env_id="Same-v0"))
    mask, card, seen = SPEC.parts
    more = (mask, msgspec.structs.replace(card, choices=(5,)), seen)
    with pytest.raises(EnvError, match=r"choices=\(5,\).* instead of .*choices=\(4,\)"):
        policy_of(SPEC).check_fits(msgspec.structs.replace(SPEC, parts=more))
