"""Names of Atari games: all that ALE has, and what is said about other ids of them."""

from __future__ import annotations

import sys

import gymnasium as gym
import numpy as np
import pytest

from apex.config.sections import EnvConfig
from apex.envs.atari_games import game_of, games
from apex.envs.registry import make_environments
from apex.errors import EnvError

pytest.importorskip("ale_py")


def test_all_games_have_a_rom_of_the_name_that_ale_gives_them():
    from ale_py import roms

    known = games()
    assert len(known) == 104 and set(known.values()) <= set(roms.get_all_rom_ids())
    named = {
        "ALE/UpNDown-v5": "up_n_down",
        "ALE/TicTacToe3D-v5": "tic_tac_toe_3d",
        "ALE/MontezumaRevenge-v5": "montezuma_revenge",
        "ALE/Pong-v5": "pong",
    }
    assert {one: game_of(one) for one in named} == named


@pytest.mark.parametrize("obs_type", ["grayscale", "ram"])
def test_game_whose_name_is_unlike_its_id_is_made(obs_type):
    environments = make_environments(EnvConfig(id="ALE/UpNDown-v5", obs_type=obs_type), 1)
    assert environments.reset(0).shape == ((1, 84, 84) if obs_type != "ram" else (1, 128))
    environments.close()


@pytest.mark.parametrize(
    ("env_id", "meant"),
    [
        ("ALE/Upndown-v5", "ALE/UpNDown-v5"),
        ("ALE/Montezuma-Revenge-v5", "ALE/MontezumaRevenge-v5"),
        ("ALE/SpaceInvader-v5", "ALE/SpaceInvaders-v5"),
        ("ALE/Pong-ram-v5", "ALE/Pong-v5"),
        ("ALE/Pong-v4", "ALE/Pong-v5"),
        ("ALE/Pong", "ALE/Pong-v5"),
    ],
)
@pytest.mark.parametrize("obs_type", ["grayscale", "ram"])
def test_misspelt_game_is_answered_with_the_nearest(env_id, meant, obs_type):
    with pytest.raises(EnvError, match=f"ALE has no such game; did you mean .*{meant}"):
        make_environments(EnvConfig(id=env_id, obs_type=obs_type), 1)


def test_name_like_no_game_gets_no_suggestion():
    with pytest.raises(EnvError) as error:
        make_environments(EnvConfig(id="ALE/Wxyzq-v5"), 1)
    assert "did you mean" not in str(error.value) and "get_all_rom_ids" in str(error.value)


@pytest.mark.parametrize(
    ("env_id", "meant"),
    [
        ("PongNoFrameskip-v4", "ALE/Pong-v5"),
        ("Pong-v5", "ALE/Pong-v5"),
        ("Pong-v4", "ALE/Pong-v5"),
        ("Pong", "ALE/Pong-v5"),
        ("Pong-ramDeterministic-v4", "ALE/Pong-v5"),
        ("UpNDownDeterministic-v0", "ALE/UpNDown-v5"),
        ("ale_py:ALE/Pong-v5", "ALE/Pong-v5"),
        ("ale_py:PongNoFrameskip-v4", "ALE/Pong-v5"),
        ("ale_py.env:AtariEnv", "ALE/"),
    ],
)
def test_other_ids_of_a_game_are_refused_with_the_one_to_write(env_id, meant):
    with pytest.raises(EnvError, match=f"write {meant}") as error:
        make_environments(EnvConfig(id=env_id), 1)
    assert "repeat_action_probability" in str(error.value)


def test_game_that_a_module_registers_again_is_refused_and_its_function_runs(tmp_path):
    module = tmp_path / "own_atari.py"
    module.write_text(
        "import ale_py, gymnasium as gym\n"
        "gym.register_envs(ale_py)\n"
        "def wrapped():\n"
        "    return gym.make('ALE/Pong-v5', obs_type='ram')\n"
    )
    with pytest.raises(EnvError, match="write ALE/Pong-v5"):
        make_environments(EnvConfig(id=f"{module}:PongNoFrameskip-v4"), 1)
    environments = make_environments(EnvConfig(id=f"{module}:wrapped"), 1)
    assert environments.reset(0).shape == (1, 128)
    environments.close()


def test_registered_environment_with_the_name_of_a_game_is_no_atari_game():
    gym.register("Tennis-v7", "gymnasium.envs.classic_control:CartPoleEnv")
    try:
        environments = make_environments(EnvConfig(id="Tennis-v7"), 1)
        assert environments.reset(0).shape == (1, 4)
        environments.close()
    finally:
        gym.registry.pop("Tennis-v7")


def test_without_ale_an_unknown_id_is_unknown_and_a_game_needs_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(EnvError, match=r"pip install 'apex-suite\[atari\]'"):
        make_environments(EnvConfig(id="ALE/Pong-v5"), 1)
    with pytest.raises(EnvError, match="NoSuch"):
        make_environments(EnvConfig(id="NoSuch-v0"), 1)


@pytest.mark.parametrize("obs_type", ["grayscale", "ram"])
def test_max_episode_steps_truncates_a_game(obs_type):
    environments = make_environments(
        EnvConfig(
            id="ALE/Pong-v5", obs_type=obs_type, max_episode_steps=7, noop_max=0, fire_reset=False
        ),
        1,
    )
    environments.reset(0)
    ends = [environments.step(np.zeros(1, np.int64)).truncated[0] for _ in range(7)]
    environments.close()
    assert ends == [False] * 6 + [True]
