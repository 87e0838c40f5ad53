"""Vector environment that steps environments of this process one after the other.

gymnasium's `SyncVectorEnv` merges all of each environment's `info` into arrays, which fails when a
key's values differ in shape or type between environments or steps. `info` may have anything, so
`SerialVectorEnv` keeps only the keys that apex reads, and keeps their values as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

from apex import plugins
from apex.config.sections import EnvConfig
from apex.data.observations import ACTION_MASK
from apex.envs.activity import Activity

Infos = dict[str, Any]
"""Per key, the values of E environments: a list with None where an environment reported nothing
(`SerialVectorEnv`), or an array `[E, …]`, with a mask at `_key` if some reported nothing (ALE's and
gymnasium's vector environments). `reported` reads both."""


SUCCESS = "success"
"""Key of `info` that is always measured: many environments for robots report it."""


def measured_names(metrics: Sequence[str]) -> tuple[str, ...]:
    """The keys of `info` that are measured, for the names in `env.metrics`."""
    return tuple(dict.fromkeys((SUCCESS, *metrics)))


def info_keys(config: EnvConfig) -> tuple[str, ...]:
    """The keys of `info` that apex reads."""
    lives = ("lives",) if config.life_loss_ends else ()
    masks = () if config.action_masks is False else (ACTION_MASK,)
    return (*lives, *masks, *measured_names(config.metrics))


def reported(infos: Infos, key: str) -> list[Any] | None:
    """The E values of a key of `info`, None where an environment did not report it.

    Args:
        infos: what a vector environment returned.
        key: the key.

    Returns:
        E values as the environments returned them (an entry of an array if they were merged), or
        None if no environment reported the key, or the value is one for all of them together.
    """
    if key not in infos:
        return None
    try:
        values = list(infos[key])
    except TypeError:  # one number
        return None
    mask = infos.get(f"_{key}")
    if mask is None:
        return values
    return [value if given else None for value, given in zip(values, mask)]


class SerialVectorEnv(SyncVectorEnv):
    """Environments that are stepped in turn, with autoreset mode NEXT_STEP.

    Args:
        env_fns: make one environment each.
        info_keys: keys of `info` that are kept; `reported` reads them.
        activity: notes the start of each call into an environment; the caller notes the end.
    """

    def __init__(
        self,
        env_fns: Sequence[Callable[[], gym.Env[Any, Any]]],
        info_keys: Sequence[str] = (),
        activity: Activity | None = None,
    ) -> None:
        self._info_keys = tuple(info_keys)
        self.last_keys: list[str] = []
        """Keys of `info` at the last end of an episode, also those that are not kept."""
        self._activity = activity or Activity()
        made: list[gym.Env[Any, Any]] = []
        try:
            for index, make in enumerate(env_fns):
                self._activity.begin("making", index)
                made.append(make())
            super().__init__(
                [lambda env=env: env for env in made],  # type: ignore[misc]
                autoreset_mode=AutoresetMode.NEXT_STEP,
            )
        except BaseException:
            _close_all(made)
            raise
        self._ended = [False] * self.num_envs

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, Infos]:
        """As in gymnasium, except for `info`."""
        if seed is None or isinstance(seed, int):
            first = seed
            seed = [None if first is None else first + index for index in range(self.num_envs)]
        observations, infos = [], Infos()
        for index, (env, one_seed) in enumerate(zip(self.envs, seed)):
            self._activity.begin("reset", index)
            observation, info = env.reset(seed=one_seed, options=options)
            observations.append(observation)
            self._keep(infos, info, index)
        self._ended = [False] * self.num_envs
        return self._joined(observations), infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, Infos]:
        """As in gymnasium, except for `info`."""
        num_envs = self.num_envs
        observations, infos = [], Infos()
        rewards = np.zeros(num_envs)
        terminated, truncated = np.zeros(num_envs, np.bool_), np.zeros(num_envs, np.bool_)
        ended, begin = self._ended, self._activity.begin
        for index, action in enumerate(iterate(self.action_space, actions)):
            env = self.envs[index]
            if ended[index]:
                begin("reset", index)
                observation, info = env.reset()
                ended[index] = False
            else:
                begin("step", index)
                observation, reward, over, cut, info = env.step(action)
                rewards[index] = reward
                if over or cut:
                    terminated[index], truncated[index], ended[index] = over, cut, True
                    self.last_keys = [str(key) for key in info]
            observations.append(observation)
            if info:
                self._keep(infos, info, index)
        return self._joined(observations), rewards, terminated, truncated, infos

    def _keep(self, infos: Infos, info: dict[str, Any], index: int) -> None:
        """Keep one environment's values of the keys that are read."""
        for key in self._info_keys:
            if key in info:
                value = info[key]
                # Environments may share an array, or change it in their next step.
                value = value.copy() if isinstance(value, np.ndarray) else value
                infos.setdefault(key, [None] * self.num_envs)[index] = value

    def _joined(self, observations: list[Any]) -> Any:
        """E observations as one new array `[E, …]`, or what their space joins them to."""
        space = self.single_observation_space
        if isinstance(space, gym.spaces.Box):
            joined = np.empty((len(observations), *space.shape), space.dtype)
            return np.stack(observations, out=joined)
        out: Any = create_empty_array(space, len(observations))
        return concatenate(space, observations, out)

    def close(self, **kwargs: Any) -> None:
        """Close all environments, also when closing one of them fails; then raise its error."""
        if self.closed:
            return
        self.closed = True
        error = _close_all(self.envs, self._activity)
        if error is not None:
            raise error


def _close_all(
    envs: Sequence[gym.Env[Any, Any]], activity: Activity | None = None
) -> BaseException | None:
    """Close environments; return the first error, if there was one."""
    first: BaseException | None = None
    for index, env in enumerate(envs):
        if activity is not None:
            activity.begin("close", index)
        try:
            env.close()
        except plugins.RAISED as error:  # whatever the user's environment raises
            first = first or error
    return first
