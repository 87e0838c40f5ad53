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
from apex.plugins import Extensions
from tests.support.environments import Counted, own


class Sized(Counted):
    def __init__(self, size: int, colour: str = "red") -> None:
        super().__init__()
        self.observation_space = gym.spaces.Box(-1, 1, (size,))

    def _observe(self) -> np.ndarray:
        return np.zeros(self.observation_space.shape, np.float32)


FILE = "from tests.unit.test_remedies import Sized\n"


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
