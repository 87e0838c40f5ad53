"""The wrappers of MiniGrid, ViZDoom and DeepMind Control, in environments that have the package."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages' own


def state(env: gym.Env) -> tuple[Any, ...]:
    """All that an action can change in a grid world."""
    grid = env.unwrapped
    place = (tuple(grid.agent_pos), grid.agent_dir)
    return (grid.grid.encode().tobytes(), place, grid.carrying is None)


@pytest.mark.parametrize(
    "env_id",
    [
        "MiniGrid-DoorKey-5x5-v0", "MiniGrid-UnlockPickup-v0", "MiniGrid-PutNear-6x6-N2-v0",
        "MiniGrid-KeyCorridorS3R1-v0", "MiniGrid-ObstructedMaze-1Dlh-v0", "MiniGrid-MemoryS7-v0",
        "MiniGrid-GoToObject-6x6-N2-v0", "MiniGrid-LockedRoom-v0",
    ],
)  # fmt: skip
def test_minigrid_masks_exactly_what_changes_nothing(env_id):
    module = pytest.importorskip("apex.envs.minigrid")
    env, rng = module.make(env_id), np.random.default_rng(0)
    forbidden = allowed = 0
    observation, _ = env.reset(seed=0)
    for _ in range(400):
        mask = observation["action_mask"]
        assert mask.tolist()[:3] == [1, 1, 1]
        for action in range(3, 6):  # pickup, drop, toggle
            other = copy.deepcopy(env)
            before = state(other)
            _, reward, *_ = other.step(action)
            assert (state(other) == before) == (not mask[action]), (env_id, action)
            assert mask[action] or reward == 0
            forbidden, allowed = forbidden + (not mask[action]), allowed + int(mask[action])
        observation, _, terminated, truncated, _ = env.step(
            rng.choice(np.flatnonzero(mask)) if rng.random() < 0.7 else 2
        )
        if terminated or truncated:
            observation, _ = env.reset()
    assert forbidden > 400 and (allowed > 5 or env_id in NOTHING_TO_TAKE)


NOTHING_TO_TAKE = ("MiniGrid-MemoryS7-v0",)


def test_minigrid_allows_done_only_where_it_is_rewarded():
    module = pytest.importorskip("apex.envs.minigrid")
    for env_id, allowed in (("MiniGrid-Empty-5x5-v0", 0), ("MiniGrid-GoToDoor-5x5-v0", 1)):
        assert module.make(env_id).reset(seed=0)[0]["action_mask"][6] == allowed


def test_minigrid_has_no_mask_for_actions_that_an_environment_lacks():
    module = pytest.importorskip("apex.envs.minigrid")
    env = module.make("MiniGrid-Dynamic-Obstacles-5x5-v0")
    assert env.action_space.n == 3
    assert env.reset(seed=0)[0]["action_mask"].tolist() == [1, 1, 1]


def test_minigrid_image_is_the_packages_own_one_hot_image_in_the_range_of_pixels():
    module = pytest.importorskip("apex.envs.minigrid")
    from minigrid.wrappers import OneHotPartialObsWrapper

    theirs = OneHotPartialObsWrapper(gym.make("MiniGrid-DoorKey-5x5-v0"))
    ours = module.make("MiniGrid-DoorKey-5x5-v0")
    found, expected = ours.reset(seed=3)[0], theirs.reset(seed=3)[0]
    for action in (1, 2, 0, 2, 3, 5, 2):
        assert (found["image"] == 255 * expected["image"]).all()
        assert found["direction"] == expected["direction"]
        found, expected = ours.step(action)[0], theirs.step(action)[0]


def test_minigrid_mission_is_the_choice_of_each_placeholder():
    module = pytest.importorskip("apex.envs.minigrid")
    env = module.make("MiniGrid-GoToObject-6x6-N2-v0")
    colours, kinds = env.env.observation_space["mission"].ordered_placeholders
    assert env.observation_space["mission"].nvec.tolist() == [6, 3]
    for seed in range(10):
        colour, kind = env.reset(seed=seed)[0]["mission"]
        assert env.unwrapped.mission == f"go to the {colours[colour]} {kinds[kind]}"
    assert "mission" not in module.make("MiniGrid-Empty-5x5-v0").observation_space.spaces


def test_dm_control_joins_the_parts_of_an_observation_in_the_order_of_their_names():
    module = pytest.importorskip("apex.envs.dm_control")
    joined = module.make("dm_control/cheetah-run-v0")
    named = module.make("dm_control/cheetah-run-v0", flatten=False)
    action = np.full(joined.action_space.shape, 0.5)
    first, parts = joined.reset(seed=1)[0], named.reset(seed=1)[0]
    for _ in range(3):
        assert list(parts) == ["position", "velocity"]
        np.testing.assert_array_equal(first, np.concatenate([parts["position"], parts["velocity"]]))
        first, reward, _, _, info = joined.step(action)
        parts, same, *_ = named.step(action)
        assert info == {} and reward == same


def test_dm_control_episode_is_truncated_after_1000_steps():
    module = pytest.importorskip("apex.envs.dm_control")
    env = module.make("dm_control/pendulum-swingup-v0")
    env.reset(seed=0)
    ends = [env.step(env.action_space.sample())[2:4] for _ in range(1000)]
    assert ends[:-1] == [(False, False)] * 999 and ends[-1] == (False, True)


def test_vizdoom_screen_is_the_mean_of_blocks_and_a_step_is_four_tics():
    module = pytest.importorskip("apex.envs.vizdoom")
    small, whole = module.make("VizdoomBasic-v1"), module.make("VizdoomBasic-v1", shrink=1)
    found, expected = small.reset(seed=1)[0], whole.reset(seed=1)[0]
    assert found["screen"].shape == (60, 80, 3) and expected["screen"].shape == (240, 320, 3)
    for row, column in ((0, 0), (59, 79), (31, 7)):
        block = expected["screen"][4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert found["screen"][row, column].tolist() == [
            sum(block[..., colour].ravel().tolist()) // 16 for colour in range(3)
        ]
    before = small.unwrapped.game.get_episode_time()
    small.step(0)
    assert small.unwrapped.game.get_episode_time() - before == 4
    for env in (small, whole):
        env.close()


def test_vizdoom_drops_texts_and_keeps_sounds():
    module = pytest.importorskip("apex.envs.vizdoom")
    texts, sounds = module.make("VizdoomBasicNotifications-v1"), module.make("VizdoomBasicAudio-v1")
    assert set(texts.observation_space.spaces) == {"gamevariables", "screen"}
    assert set(sounds.observation_space.spaces) == {"audio", "gamevariables", "screen"}
    for env in (texts, sounds):
        assert env.observation_space.contains(env.reset(seed=0)[0])
        env.close()
