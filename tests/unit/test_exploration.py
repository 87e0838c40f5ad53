"""The epsilon ladder and epsilon-greedy choice."""

from __future__ import annotations

import numpy as np
import pytest

from apex.acting.exploration import EpsilonGreedy, epsilon_ladder, ladder_positions


def test_ladder_matches_horgans_formula_for_eight_rungs():
    epsilons = epsilon_ladder(np.arange(8.0), 8, 0.4, 7.0)
    # 0.4^(1 + 7 i / 7) = 0.4^(i + 1)
    expected = [0.4, 0.16, 0.064, 0.0256, 0.01024, 0.004096, 0.0016384, 0.00065536]
    assert epsilons.tolist() == pytest.approx(expected)


def test_ladder_of_one_rung_takes_the_middle_exponent():
    assert epsilon_ladder(np.zeros(1), 1, 0.4, 7.0)[0] == pytest.approx(0.4**4.5)
    assert epsilon_ladder(np.zeros(1), 1, 0.4, 7.0)[0] == pytest.approx(0.016190861)


def test_ladder_ends_are_the_papers_for_360_actors():
    epsilons = epsilon_ladder(np.arange(360.0), 360, 0.4, 7.0)
    assert epsilons[0] == pytest.approx(0.4) and epsilons[-1] == pytest.approx(0.00065536)
    assert epsilons[1] == pytest.approx(0.4 ** (1 + 7 / 359))


def test_actors_divide_the_rungs_among_them():
    assert ladder_positions(0, 3, 4).tolist() == [0, 3, 6, 9]
    assert ladder_positions(2, 3, 4).tolist() == [2, 5, 8, 11]
    rungs = np.concatenate([ladder_positions(slot, 3, 4) for slot in range(3)])
    assert sorted(rungs.tolist()) == list(range(12))


def test_extra_actor_takes_midpoints_within_the_ladder():
    assert ladder_positions(3, 3, 4).tolist() == [0.5, 3.5, 6.5, 9.5]
    assert ladder_positions(4, 3, 4).tolist() == [1.5, 4.5, 7.5, 10.5]
    # There is no rung after the last: the last midpoint is that rung.
    assert ladder_positions(5, 3, 4).tolist() == [2.5, 5.5, 8.5, 11.0]
    assert ladder_positions(6, 3, 4).tolist() == [0.5, 3.5, 6.5, 9.5]


def test_one_actor_with_one_environment_has_rung_zero():
    assert ladder_positions(0, 1, 1).tolist() == [0.0]
    assert ladder_positions(7, 1, 1).tolist() == [0.0]


def draws(epsilons: list[float], seeds: list[tuple[int, ...]], count: int = 50) -> np.ndarray:
    explore = EpsilonGreedy(np.array(epsilons), 6, seeds)
    return np.stack([explore(np.eye(6)[[0] * len(seeds)]) for _ in range(count)])


def test_draws_of_an_environment_do_not_depend_on_its_neighbours():
    alone = draws([0.5], [(1, 2, 3)])
    among = draws([0.9, 0.5, 0.1], [(1, 2, 2), (1, 2, 3), (1, 2, 4)])
    assert (alone[:, 0] == among[:, 1]).all()


def test_draws_differ_between_seeds_and_repeat_for_one_seed():
    same, again, other = (draws([1.0], [seed]) for seed in ((1, 2, 3), (1, 2, 3), (1, 2, 4)))
    assert (same == again).all() and (same != other).any()


def test_share_of_random_actions_is_epsilon_of_a_uniform_draw():
    """Normal instead of uniform draws, a known bug, would give a share of 0.69 instead of 0.5."""
    actions = draws([0.5, 0.0, 1.0], [(0, 0, env) for env in range(3)], count=6000)
    random_share = (actions != 0).mean(axis=0) * 6 / 5
    assert random_share[0] == pytest.approx(0.5, abs=0.04)
    assert random_share[1] == 0.0
    counts = np.bincount(actions[:, 2], minlength=6)
    assert counts.min() > 850 and counts.max() < 1150 and len(counts) == 6


def test_greedy_actions_are_kept_and_not_changed_in_place():
    explore = EpsilonGreedy(np.array([0.0, 1.0]), 2, [(0,), (1,)])
    values = np.array([[0.0, 1.0], [2.0, 3.0]])
    taken = np.stack([explore(values) for _ in range(30)])
    assert (taken[:, 0] == 1).all() and set(taken[:, 1].tolist()) == {0, 1}
    assert values.tolist() == [[0.0, 1.0], [2.0, 3.0]]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.5, -np.inf, 0.1, -np.inf], {0, 2}),
        ([np.nan, -np.inf, np.nan, np.inf], {0, 2, 3}),
        ([-np.inf] * 4, {0, 1, 2, 3}),
    ],
    ids=["masked", "diverged", "nothing_left"],
)
def test_random_actions_are_those_that_are_not_forbidden(values, expected):
    explore = EpsilonGreedy(np.ones(50), 4, [(k,) for k in range(50)])
    chosen = np.concatenate([explore(np.tile(np.float32(values), (50, 1))) for _ in range(4)])
    assert set(chosen.tolist()) == expected
