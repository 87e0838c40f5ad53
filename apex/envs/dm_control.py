"""DeepMind Control Suite by shimmy: the parts of an observation are joined to one vector.

`apex.envs.dm_control:dm_control/cheetah-run-v0` is that task in the wrappers of this module, and so
is every other id of shimmy's. A plain `env.id = "dm_control/cheetah-run-v0"` means the same.
`env.kwargs = {flatten = false}` keeps the observation's named parts.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import shimmy  # noqa: F401  (registers the ids)


class NoTimestepInfo(gym.Wrapper[Any, Any, Any, Any]):
    """Drops what shimmy puts into `info`: objects of dm_env, which do not form arrays."""

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """As in gymnasium."""
        return self.env.reset(**kwargs)[0], {}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """As in gymnasium."""
        return (*self.env.step(action)[:4], {})


def make(env_id: str, *, flatten: bool = True, **kwargs: Any) -> gym.Env[Any, Any]:
    """Make a task of the suite.

    Args:
        env_id: gymnasium id.
        flatten: join the parts of an observation to one vector, in the order of their names.
        kwargs: keyword arguments of `gymnasium.make`.
    """
    env = NoTimestepInfo(gym.make(env_id, **kwargs))
    return gym.wrappers.FlattenObservation(env) if flatten else env


def __getattr__(name: str) -> Callable[..., gym.Env[Any, Any]]:
    """The factory of a task by its id, for `env.id = "apex.envs.dm_control:ID"`."""
    if name.startswith("dm_control/"):
        return partial(make, name)
    raise AttributeError(name)
