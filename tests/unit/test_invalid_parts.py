"""Acts and items of observations with parts that another program made wrongly."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from apex.acting.agent import Agent
from apex.acting.exploration import EpsilonGreedy, Sampled
from apex.algos.base import Algorithm
from apex.algos.registry import make_algorithm
from apex.daemons.inference.client import result_to_arrays
from apex.daemons.inference.endpoint import check_act
from apex.data.chunks import Items
from apex.envs.spec import StepResult
from apex.errors import CorruptItemsError, SchemaError
from apex.wire.messages import Act
from tests.support.builders import PARTS_SPEC, env_spec, parts_observations

ENVS = 2
BEGIN, STEP = (Act(seq=0, begins=begins, slot=0, incarnation=0) for begins in (True, False))


def act_arrays(value: float = 3.0) -> dict[str, np.ndarray]:
    flags = np.zeros((3, ENVS), dtype=np.bool_)
    return result_to_arrays(StepResult(parts_observations(ENVS, value), np.ones(ENVS), *flags))


def test_act_of_parts_has_a_buffer_for_each_and_is_read_in_any_order():
    arrays = act_arrays()
    assert list(arrays) == [
        "observation.map", "observation.near", "observation.position", "observation.goal",
        "observation.action_mask", "rewards", "terminated", "truncated", "life_lost",
    ]  # fmt: skip
    observations = check_act(
        STEP, dict(reversed(arrays.items())), PARTS_SPEC, ENVS
    ).result.observations
    assert list(observations) == ["map", "near", "position", "goal", "action_mask"]
    assert observations["near"].tolist() == [[[3] * 3] * 2] * 2
    assert observations["goal"].tolist() == [3, 3]


def test_buffers_that_an_act_does_not_need_are_ignored():
    extra = {"observation.other": np.zeros(7), "observations": np.zeros(1), "x": np.zeros((0, 2))}
    read = check_act(BEGIN, {**extra, **act_arrays()}, PARTS_SPEC, ENVS)
    assert list(read.result.observations) == [part.name for part in PARTS_SPEC.parts]
    assert read.result.rewards.tolist() == [0, 0], "those of the episodes before"


MASK = "observation.action_mask"
BAD_ACTS = {
    "missing": ({"observation.near": None}, "observation.near: expected uint8 .*no such buffer"),
    "dtype": ({"observation.goal": np.zeros(2, np.int64)}, "observation.goal: expected int32"),
    "rank": ({"observation.goal": np.zeros((2, 1), np.int32)}, "goal: expected int32 .*, got int"),
    "one_environment": ({"observation.map": np.zeros((1, 4, 4), np.uint8)}, "map: expected uint8"),
    "swapped_axes": ({"observation.near": np.zeros((2, 3, 2), np.uint8)}, "near: expected uint8"),
    "nan": ({"observation.position": np.full((2, 2), np.nan, np.float32)}, "position.*NaN"),
    "choice_too_large": ({"observation.goal": np.int32([0, 4])}, r"below \(4,\) in.*got 4"),
    "choice_below_0": ({"observation.goal": np.int32([-1, 0])}, r"below \(4,\) in.*got -1"),
    "long_mask": ({MASK: np.ones((2, 4), np.uint8)}, "action_mask: expected uint8"),
    "bool_as_float": ({MASK: np.ones((2, 3), np.float32)}, "action_mask: expected uint8"),
    "nothing_allowed": ({MASK: np.uint8([[1, 1, 1], [0, 0, 0]])}, r"an allowed .*\[0, 0, 0\]"),
    "plain": ({**dict.fromkeys(act_arrays()), "observation": np.zeros((2, 4), np.float32)},
              "observation.map: expected uint8"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_ACTS)
@pytest.mark.parametrize("message", [BEGIN, STEP], ids=["begin", "step"])
def test_act_with_a_bad_part_is_refused(name, message):
    change, words = BAD_ACTS[name]
    arrays = {n: array for n, array in (act_arrays() | change).items() if array is not None}
    with pytest.raises(SchemaError, match=words):
        check_act(message, arrays, PARTS_SPEC, ENVS)


def test_parts_are_no_plain_observation():
    with pytest.raises(SchemaError, match="observation: expected float32"):
        check_act(BEGIN, act_arrays(), env_spec((4,), "float32"), ENVS)


def test_any_buffers_are_read_or_refused():
    rng, valid = np.random.default_rng(0), act_arrays()
    dtypes = [np.uint8, np.int32, np.int64, np.float32, np.float64]
    read = 0
    for _ in range(4000):
        arrays = dict(valid)
        for name in rng.choice([*valid, "ended"], size=rng.integers(1, 4)):
            shape = valid.get(name, valid["rewards"]).shape
            if rng.random() < 0.4:
                shape = tuple(rng.integers(0, 4, rng.integers(0, 4)))
            with np.errstate(invalid="ignore", over="ignore"):
                dtype = arrays[name].dtype if rng.random() < 0.6 and name in arrays else None
                numbers = np.asarray(rng.choice([-1.0, 0, 1, 3, 4, 300, np.nan, np.inf], shape))
                arrays[name] = numbers.astype(dtype or rng.choice(dtypes))
        try:
            act = check_act(STEP if rng.random() < 0.5 else BEGIN, arrays, PARTS_SPEC, ENVS)
        except SchemaError:
            continue
        read += 1
        goal, mask = (act.result.observations[name] for name in ("goal", "action_mask"))
        assert goal.min() >= 0 and goal.max() < 4 and mask.any(axis=1).all()
    assert 100 < read < 3900


ALGORITHMS = {
    "apex_dqn": {"name": "apex_dqn", "n_step": 2},
    "r2d2": {"name": "r2d2", "burn_in": 1, "unroll_length": 2, "overlap": 1, "n_step": 1},
    "impala": {"name": "impala", "unroll_length": 3},
}


def algorithm_of(name: str) -> Algorithm:
    return make_algorithm(ALGORITHMS[name], PARTS_SPEC)


def items_of(algorithm: Algorithm, count: int = 4) -> Items:
    """Items of zeros with all actions allowed."""
    schema = algorithm.schema()
    columns = {c.name: np.zeros((count, *c.shape), c.dtype) for c in schema.columns}
    for name in columns:
        if name.endswith("action_mask"):
            columns[name][:] = 1
    most = schema.frames.max_frames
    return Items(
        10 + np.arange(count), np.ones(count), columns,
        np.zeros((count, most, *schema.frames.shape), np.uint8), np.full(count, most, np.int32),
    )  # fmt: skip


CHANGES = {
    "choice_too_large": ("observation.goal", 4),
    "choice_below_0": ("observation.goal", -1),
    "nothing_allowed": (MASK, [0, 0, 0]),
    "forbidden_action": (MASK, [0, 1, 1]),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("read", ["collate", "pack"])
def test_item_with_a_bad_part_is_corrupt(name, change, read):
    algorithm = algorithm_of(name)
    items = items_of(algorithm)
    getattr(algorithm, read)(items)
    column, value = CHANGES[change]
    items.columns[column][(2,) if name == "apex_dqn" else (2, 1)] = value
    with pytest.raises(CorruptItemsError, match=re.escape("choices that exist")) as error:
        getattr(algorithm, read)(items)
    assert error.value.item_ids == [12]


@pytest.mark.parametrize("change", ["choice_too_large", "choice_below_0", "nothing_allowed"])
def test_transition_with_a_bad_bootstrap_observation_is_corrupt(change):
    algorithm = algorithm_of("apex_dqn")
    items = items_of(algorithm)
    column, value = CHANGES[change]
    items.columns[f"next_{column}"][[0, 3]] = value
    with pytest.raises(CorruptItemsError) as error:
        algorithm.collate(items)
    assert error.value.item_ids == [10, 13]


def test_row_without_an_action_needs_no_allowed_one():
    """The last row of a truncated episode has the action 0, which may be forbidden there."""
    algorithm = algorithm_of("impala")
    items = items_of(algorithm)
    items.columns[MASK][2, 1] = [0, 1, 1]
    items.columns["is_last"][2, 1] = 1
    assert algorithm.collate(items).action_mask[2, 1].tolist() == [False, True, True]
    items.columns["is_last"][2, 1] = 0
    with pytest.raises(CorruptItemsError):
        algorithm.collate(items)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_policy_decides_about_any_act_that_is_read(name):
    """Also about numbers that overflow the network, whose outputs are then not finite."""
    small = {"conv": [[4, 2, 1]], "hidden": [8]} | ({} if name == "apex_dqn" else {"lstm": 4})
    policy = make_algorithm(ALGORITHMS[name] | small, PARTS_SPEC).policy()
    seeds = [(0,), (1,)]
    ladder = EpsilonGreedy(np.array([0.0, 1.0]), 3, seeds)
    explore = Sampled(seeds) if name == "impala" else ladder
    agent = Agent(PARTS_SPEC, ENVS, policy.core_size, clip_rewards=False, exploration=explore)
    for position, goal, allowed in itertools.product([0, 3.4e38, -3.4e38], [0, 3], range(1, 8)):
        mask = [[allowed >> k & 1 for k in range(3)]] * ENVS
        arrays = act_arrays() | {
            "observation.position": np.full((ENVS, 2), position, np.float32),
            "observation.goal": np.full(ENVS, goal, np.int32),
            MASK: np.uint8(mask),
        }
        agent.begin(check_act(BEGIN, arrays, PARTS_SPEC, ENVS).result.observations)
        for exploration in (explore, None):
            actions = policy.act(agent.inputs, exploration).actions
            assert actions.min() >= 0 and actions.max() < 3
            if position == 0:
                assert all(mask[env][action] for env, action in enumerate(actions))
