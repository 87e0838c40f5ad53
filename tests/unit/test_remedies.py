"""Remedies that errors about an environment advise, applied: each of them helps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from apex.config.sections import EnvConfig
from apex.envs.registry import make_environments
from apex.errors import EnvError, EnvFaultError
from apex.launch import prepare
from apex.launch.preflight import try_config
from tests.support.environments import Counted, own


class Sized(Counted):
    def __init__(self, size: int, colour: str = "red") -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(-1, 1, (size,))

    def _observe(self) -> np.ndarray:
        return np.zeros(self.observation_space.shape, np.float32)


FILE = f"from {__name__} import Sized\n"


def test_missing_argument_names_env_kwargs_and_setting_it_helps(tmp_path):
    file = tmp_path / "sized.py"
    file.write_text(FILE)
    with pytest.raises(EnvError, match=r"'size'.*--set 'env\.kwargs=\{size = …\}'"):
        make_environments(EnvConfig(id=f"{file}:Sized"), 1)
    settings = [f"env.id={file}:Sized", "env.kwargs={size = 3}"]
    assert try_config(prepare.preset_config("cartpole", settings)).spec.observation_shape == (3,)


def test_unknown_argument_shows_the_arguments_and_removing_it_helps(tmp_path):
    file = tmp_path / "sized.py"
    file.write_text(FILE)
    kwargs = {"size": 3, "width": 4}
    with pytest.raises(EnvError, match=r"env\.kwargs is .*'width': 4.*remove or rename"):
        make_environments(EnvConfig(id=f"{file}:Sized", kwargs=kwargs), 1)
    with pytest.raises(EnvError, match=r"env\.kwargs is .*'width': 4.*remove or rename"):
        make_environments(EnvConfig(id="CartPole-v1", kwargs=kwargs), 1)
    del kwargs["width"]
    make_environments(EnvConfig(id=f"{file}:Sized", kwargs=kwargs), 1).close()


def test_argument_of_a_scripts_function_is_bound_as_advised():
    with pytest.raises(EnvError, match="make_env is called without arguments"):
        own(Sized)
    own(lambda: Sized(3)).close()


class WithSpaces(Counted):
    def __init__(self, observation: gym.Space | None = None, action: gym.Space | None = None):
        super().__init__()
        self.observation_space = observation or self.observation_space
        self.action_space = action or self.action_space
        self.taken: list[Any] = []

    def _observe(self) -> Any:
        self.observation_space.seed(1)
        return self.observation_space.sample()

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        return super().step(action)


def converted(env: gym.Env) -> gym.Env:
    """An environment of integers from 3 to 5 that takes choices from 0 to 2."""
    return gym.wrappers.TransformAction(
        env, lambda action: np.asarray(action, np.int64) + 3, gym.spaces.MultiDiscrete([3, 3])
    )


def bounded(env: gym.Env) -> gym.Env:
    return gym.wrappers.TransformAction(env, np.exp, gym.spaces.Box(-1, 1, (2,)))


def flattened(env: gym.Env) -> gym.Env:
    return gym.wrappers.FlattenObservation(env)


def reshaped(env: gym.Env) -> gym.Env:
    return gym.wrappers.ReshapeObservation(env, (1,))


@pytest.mark.parametrize(
    ("spaces", "message", "wrap"),
    [
        (
            {"observation": gym.spaces.Text(5)},
            "FlattenObservation",
            gym.wrappers.FlattenObservation,
        ),
        ({"observation": gym.spaces.Box(0, 1, ())}, "ReshapeObservation", reshaped),
        ({"action": gym.spaces.Box(3, 5, (2,), np.int64)}, "TransformAction", converted),
        ({"action": gym.spaces.Box(-np.inf, np.inf, (2,))}, "TransformAction", bounded),
        ({"action": gym.spaces.Box(0, np.inf, (2,))}, "TransformAction", bounded),
    ],
    ids=["text", "number", "integers", "unbounded", "half_open"],
)
def test_wrapper_that_is_advised_makes_the_space_usable(
    spaces: dict[str, gym.Space], message: str, wrap: Callable[[gym.Env], gym.Env]
) -> None:
    with pytest.raises(EnvError, match=message):
        own(lambda: WithSpaces(**spaces))
    environments = own(lambda: wrap(WithSpaces(**spaces)))
    rng = np.random.default_rng(1)
    environments.reset(0)
    for _ in range(7):
        environments.step(environments.spec.random_actions(2, rng))
    environments.close()


class WithoutRenderMode(Counted):
    def __init__(self) -> None:
        super().__init__()


class OnlyText(Counted):
    def render(self) -> Any:
        return "text"


class NoPicture(Counted):
    def render(self) -> Any:
        return None


def picture(kind: Any, tmp_path: Any) -> np.ndarray:
    """The first picture of an environment that a file names, as `apex enjoy --video` makes it."""
    file = tmp_path / "drawn.py"
    file.write_text(f"from {__name__} import {kind.__name__}\n")
    config = EnvConfig(id=f"{file}:{kind.__name__}")
    environments = make_environments(config, 1, render=True)
    try:
        environments.reset(0)
        return environments.render()[0]
    finally:
        environments.close()


@pytest.mark.parametrize("kind", [WithoutRenderMode, OnlyText, NoPicture])
def test_environment_without_pictures_is_told_how_to_return_them(kind, tmp_path):
    with pytest.raises((EnvError, EnvFaultError), match=r"render_mode='rgb_array' in its constr"):
        picture(kind, tmp_path)


class AsAdvised(Counted):
    def render(self) -> Any:
        return np.full((4, 6, 3), 7, np.uint8)


class Grey(Counted):
    def render(self) -> Any:
        return np.full((4, 6), 7, np.uint8)


class WithAlpha(Counted):
    def render(self) -> Any:
        return np.full((4, 6, 4), 7 / 255)


@pytest.mark.parametrize("kind", [AsAdvised, Grey, WithAlpha])
def test_pictures_are_converted_to_colours_of_one_byte(kind, tmp_path):
    drawn = picture(kind, tmp_path)
    assert (drawn.shape, drawn.dtype, set(drawn.ravel().tolist())) == ((4, 6, 3), np.uint8, {7})
