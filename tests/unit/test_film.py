"""Films of trained policies, in files and in a terminal."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

import apex
from apex.config.sections import EnvConfig
from apex.envs.registry import make_environments
from apex.errors import EnvError, EnvFaultError, UsageError
from apex.evaluation import film
from apex.evaluation.film import Scene
from apex.evaluation.trained_policy import load_policy

CARTPOLE = Path(apex.__file__).parent / "pretrained" / "cartpole"


def scenes(count: int, fps: float = 20.0) -> list[Scene]:
    return [
        Scene(np.full((20, 10, 3), 40 * k, np.uint8), fps, 7.0 if k == count - 1 else None)
        for k in range(count)
    ]


def test_rendering_shows_the_game_and_does_not_change_it():
    config = EnvConfig(id="ALE/Pong-v5", frame_size=(42, 42), repeat_action_probability=0.25)
    filmed = make_environments(config, 2, render=True)
    plain = make_environments(config, 2)
    try:
        assert np.array_equal(filmed.reset(3), plain.reset(3))
        rng = np.random.default_rng(0)
        for _ in range(60):
            actions = rng.integers(0, 6, 2)
            seen, expected = filmed.step(actions), plain.step(actions)
            assert np.array_equal(seen.observations, expected.observations)
            pictures = filmed.render()
            assert [p.shape for p in pictures] == [(210, 160, 3)] * 2
        assert filmed.frames_per_second == 15.0
        small = np.stack([_grey(picture)[::5, ::4] for picture in pictures]).astype(float)
        big = np.stack([np.asarray(o) for o in seen.observations]).astype(float)
        agreement = np.corrcoef(small[:, :42, :40].ravel(), big[:, :, 1:41].ravel())[0, 1]
        assert agreement > 0.5
        assert not np.array_equal(pictures[0], pictures[1])
    finally:
        filmed.close()
        plain.close()


def _grey(picture: np.ndarray) -> np.ndarray:
    return picture @ np.array([0.299, 0.587, 0.114])


def test_policy_plays_whole_episodes_with_a_picture_a_step():
    policy = load_policy(CARTPOLE)
    played = list(film.play(policy, episodes=1, seed=1))
    assert played[-1].finished == policy.play(1, seed=1)[0] == len(played) - 1
    assert all(scene.finished is None for scene in played[:-1])
    assert played[0].picture.shape == (400, 600, 3) and played[0].fps == 50.0


def test_environment_without_rendering_is_refused():
    environments = make_environments(EnvConfig(id="CartPole-v1"), 1)
    environments.reset(1)
    with pytest.raises(EnvFaultError, match="render_mode='rgb_array'"):
        environments.render()
    environments.close()


def test_videos_other_than_mp4_and_gif_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"\.mp4 or \.gif"):
        film.check_video(tmp_path / "film.avi")
    with pytest.raises(UsageError, match="is not a directory"):
        film.check_video(tmp_path / "nowhere" / "film.mp4")


def test_terminal_shows_two_pixels_in_a_character():
    picture = np.zeros((4, 2, 3), np.uint8)
    picture[0], picture[1], picture[2:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    lines = film.half_blocks(picture, columns=80, rows=20).split("\n")
    assert len(lines) == 2
    assert lines[0].startswith("\x1b[38;2;255;0;0;48;2;0;255;0m▀▀\x1b[0m")
    assert lines[1].startswith("\x1b[38;2;0;0;255;48;2;0;0;255m▀▀\x1b[0m")
    tall = film.half_blocks(np.zeros((210, 160, 3), np.uint8), columns=40, rows=30).split("\n")
    assert len(tall) <= 30 and max(line.count("▀") for line in tall) <= 40


def test_showing_gives_the_returns_and_leaves_the_cursor_visible():
    out = io.StringIO()
    assert film.show(scenes(3, fps=1000.0), out) == [7.0]
    assert out.getvalue().endswith("\x1b[?25h\n") and "returns so far: 7" in out.getvalue()


def test_film_is_whole_although_closing_the_environment_fails(tmp_path, caplog):
    (tmp_path / "breaks.py").write_text(
        "import gymnasium as gym\n"
        "class Breaks(gym.Wrapper):\n"
        "    def __init__(self, render_mode=None):\n"
        "        super().__init__(gym.make('CartPole-v1', render_mode=render_mode))\n"
        "    def close(self):\n"
        "        raise RuntimeError('close failed')\n"
    )
    settings = (f"env.id={tmp_path / 'breaks.py'}:Breaks", "env.max_episode_steps=4")
    played = list(film.play(load_policy(CARTPOLE, settings), episodes=1, seed=1))
    assert played[-1].finished == 4.0 and len(played) == 5
    assert "closing the environments raised RuntimeError: close failed" in caplog.text


def test_policy_is_not_played_in_an_environment_of_another_kind():
    policy = load_policy(CARTPOLE, ("env.id=Acrobot-v1",))
    with pytest.raises(EnvError, match=r"Acrobot-v1 has observations \(6,\).*was trained on CartP"):
        policy.play(2, seed=1)
    with pytest.raises(EnvError, match=r"Acrobot-v1 has observations \(6,\).*was trained on CartP"):
        list(film.play(policy, episodes=1, seed=1))
