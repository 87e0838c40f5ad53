"""Vector environments that users bring: factories that are given `num_envs`, and their checks.

Vectors with autoreset mode NEXT_STEP are stepped as they are. In the modes SAME_STEP and DISABLED
an environment begins its next episode before the policy has seen the end of the last one, and the
others cannot be held back. So these are made as vectors of one environment each, which
`OneOfVector` presents as a single environment, without losing an observation.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from gymnasium.vector.utils import iterate

from apex.data.schema import Array
from apex.envs.env_checks import RESET_RETURNS, STEP_RETURNS, MisbehavedError, fits, kind_of
from apex.envs.spaces import FLATTENED
from apex.envs.vector import Infos
from apex.errors import EnvError

log = logging.getLogger("apex.envs")

Vector: TypeAlias = VectorEnv[Any, Any, Any]
VectorFactory: TypeAlias = Callable[[int], Any]
"""Makes a vector environment with a number of environments."""

VECTOR_CLASS = "gymnasium.vector.VectorEnv"


def vector_factory(make: Callable[..., Any]) -> VectorFactory | None:
    """A factory of vector environments, if `make` takes `num_envs`; None: it makes one environment.

    Args:
        make: what a configuration or a script names, with the arguments of `env.kwargs` bound.
    """
    kind = make.func if isinstance(make, partial) else make
    if isinstance(kind, type) and issubclass(kind, gym.Env):
        return None
    try:
        taken = inspect.signature(make).parameters
    except (TypeError, ValueError):  # such as a class of an extension module
        return None
    return (lambda num_envs: make(num_envs=num_envs)) if "num_envs" in taken else None


def registered_vector(env_id: str, kwargs: dict[str, Any]) -> Callable[..., Any] | None:
    """`gymnasium.make_vec` for an id that is registered with a `vector_entry_point` alone."""
    spec = gym.envs.registration.registry.get(env_id)
    if spec is None or spec.entry_point is not None or spec.vector_entry_point is None:
        return None

    def make(num_envs: int) -> Any:
        return gym.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point", **kwargs)

    return make


def make_own_vector(make: VectorFactory, num_envs: int, env_id: str) -> Vector | list[OneOfVector]:
    """Make a user's vector environment, or as many vectors of one environment.

    Args:
        make: the factory.
        num_envs: number of environments.
        env_id: the environment's name in messages.

    Returns:
        A checked vector environment in mode NEXT_STEP, or `num_envs` single environments.

    Raises:
        EnvError: what it returned is not a vector environment of that size.
    """
    vector = _made(make, num_envs, env_id)
    mode = _mode(vector, env_id)
    if mode == AutoresetMode.NEXT_STEP:
        checked: Vector = CheckedVector(vector)
        is_flattened = isinstance(vector.single_observation_space, FLATTENED)
        return gym.wrappers.vector.FlattenObservation(checked) if is_flattened else checked
    vectors = [vector]
    if num_envs > 1:
        vector.close()
        vectors = [_made(make, 1, env_id) for _ in range(num_envs)]
        log.info(
            "%s: autoreset mode %s: stepped as %d vectors of one environment, since each must show "
            "the end of an episode before it begins the next; with NEXT_STEP they would be stepped "
            "together",
            env_id, mode.value, num_envs,
        )  # fmt: skip
    return [OneOfVector(one, mode) for one in vectors]


def _made(make: VectorFactory, num_envs: int, env_id: str) -> Vector:
    vector = make(num_envs)
    if not isinstance(vector, VectorEnv):
        raise EnvError(
            f"{env_id}: a factory that takes num_envs must return a {VECTOR_CLASS}, got a "
            f"{type(vector).__name__}; derive its class from {VECTOR_CLASS}, or take num_envs away "
            "to make one environment at each call"
        )
    if vector.num_envs != num_envs:
        found = vector.num_envs
        vector.close()
        raise EnvError(
            f"{env_id}: asked for num_envs={num_envs}, got a vector of {found} environments; make "
            "as many as are asked for: actor.num_envs in an actor, evaluator.num_envs in the "
            "evaluator, 1 for apex enjoy"
        )
    return vector


def _mode(vector: Vector, env_id: str) -> AutoresetMode:
    found = vector.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(found)
    except ValueError:
        raise EnvError(
            f"{env_id}: expected metadata['autoreset_mode'] to be one of "
            f"{', '.join(str(mode) for mode in AutoresetMode)}, got {found!r}; with NEXT_STEP, the "
            "step after the end of an episode ignores its action and returns the first observation "
            "of the next one"
        ) from None


class CheckedVector(VectorWrapper):
    """Raises an error with a remedy if a vector environment returns an invalid value.

    What it returns is copied, since vector environments may write into the same arrays again.

    Args:
        vector: a user's, with autoreset mode NEXT_STEP.
    """

    def __init__(self, vector: Vector) -> None:
        super().__init__(vector)
        self._ended = np.zeros(vector.num_envs, np.bool_)
        space = vector.single_observation_space
        self._box = space if isinstance(space, gym.spaces.Box) else None

    def reset(self, **kwargs: Any) -> tuple[Any, Infos]:
        """As in gymnasium. Raises `MisbehavedError`."""
        returned = self.env.reset(**kwargs)
        if not (isinstance(returned, tuple) and len(returned) == 2):
            raise MisbehavedError(
                f"returned {kind_of(returned)}; reset must return {RESET_RETURNS}"
            )
        self._ended = np.zeros(self.num_envs, np.bool_)
        return self._checked(*returned)

    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, Infos]:
        """As in gymnasium. Raises `MisbehavedError`."""
        returned = self.env.step(actions)
        if not (isinstance(returned, tuple) and len(returned) == 5):
            raise MisbehavedError(f"returned {kind_of(returned)}; step must return {STEP_RETURNS}")
        observations, rewards, terminated, truncated, info = returned
        rewards = self._column("rewards", rewards, "biuf").astype(np.float64)
        flags = [
            self._column(name, values, "biu").astype(np.bool_)
            for name, values in (("terminated", terminated), ("truncated", truncated))
        ]
        ended = flags[0] | flags[1]
        wrong = self._ended & (ended | (rewards != 0.0))
        if wrong.any():
            raise MisbehavedError(
                f"returned the reward {rewards[wrong][0]:g} or an end for environment "
                f"{int(np.flatnonzero(wrong)[0])} in the step after an episode's end; in the "
                "autoreset mode NEXT_STEP that step begins an episode, with reward 0. If a vector "
                "begins it in the last step, its metadata['autoreset_mode'] is SAME_STEP"
            )
        self._ended = ended
        observations, info = self._checked(observations, info)
        return observations, rewards, flags[0], flags[1], info

    def _column(self, name: str, values: Any, kinds: str) -> Array:
        """One number for each environment, `[E]`."""
        array: Array = np.asarray(values)
        if array.shape != (self.num_envs,) or array.dtype.kind not in kinds:
            raise MisbehavedError(
                f"returned `{name}` as {array.dtype} {array.shape}; return an array with one "
                f"{'number' if 'f' in kinds else 'boolean'} for each of {self.num_envs} "
                "environments"
            )
        return array

    def _checked(self, observations: Any, info: Any) -> tuple[Any, Infos]:
        """Copies of the observations, converted to the dtype of their space, and the info."""
        if not isinstance(info, dict):
            raise MisbehavedError(f"returned an info that is {kind_of(info)}; return a dict")
        if self._box is None:
            if observations not in self.observation_space:
                raise MisbehavedError(
                    f"returned the observations {observations}, but its observation_space is "
                    f"{self.observation_space}; make them agree"
                )
            return _copied(observations), info
        array: Array = np.array(observations)
        shape, dtype = (self.num_envs, *self._box.shape), np.dtype(self._box.dtype)
        if array.shape != shape:
            raise MisbehavedError(
                f"returned observations of shape {array.shape}, but {self.num_envs} of its "
                f"observation_space have the shape {shape}; make them agree"
            )
        if array.dtype != dtype and not fits(array, dtype):
            raise MisbehavedError(
                f"returned observations of {array.dtype}, which its observation_space of {dtype} "
                f"cannot hold; scale them and return .astype(np.{dtype}), or change the space"
            )
        return array.astype(dtype, copy=False), info


class OneOfVector(gym.Env[Any, Any]):
    """The only environment of a vector, as a single environment.

    Args:
        vector: a vector of one environment.
        mode: its autoreset mode: SAME_STEP or DISABLED.
    """

    def __init__(self, vector: Vector, mode: AutoresetMode) -> None:
        self._vector = vector
        self._mode = mode
        self._begun: tuple[Any, dict[str, Any]] | None = None
        """What the vector returned of an episode that it has already begun."""
        self.observation_space = vector.single_observation_space
        self.action_space = vector.single_action_space
        self.metadata = dict(vector.metadata)
        self.render_mode = vector.render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """As in gymnasium."""
        begun, self._begun = self._begun, None
        if begun is not None and seed is None and options is None:
            return begun
        returned = self._vector.reset(seed=seed, options=options)
        if not (isinstance(returned, tuple) and len(returned) == 2):
            return returned  # `Checked` reports it
        return self._first(returned[0]), _first_info(returned[1])

    def step(self, action: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As in gymnasium."""
        returned = self._vector.step(np.asarray(action)[None])
        if not (isinstance(returned, tuple) and len(returned) == 5):
            return returned  # `Checked` reports it
        observations, rewards, terminated, truncated, infos = returned
        over, cut = np.asarray(terminated)[0], np.asarray(truncated)[0]
        observation, info = self._first(observations), _first_info(infos)
        if self._mode == AutoresetMode.SAME_STEP and (over or cut):
            if "final_obs" not in infos:
                raise MisbehavedError(
                    "returned no info['final_obs'] at the end of an episode; in the autoreset mode "
                    "SAME_STEP it holds the last observation of each episode that ended"
                )
            final, self._begun = infos["final_obs"], (observation, info)
            # gymnasium's vectors give an array of observations, others a batch as in a step.
            is_batch = isinstance(final, (dict, tuple))
            observation = self._first(final) if is_batch else _copied(final[0])
            info = _first_info(infos.get("final_info", {}))
        return observation, np.asarray(rewards)[0], over, cut, info

    def _first(self, observations: Any) -> Any:
        return _copied(next(iter(iterate(self._vector.observation_space, observations))))

    def render(self) -> Any:
        """One picture, as in gymnasium."""
        pictures = self._vector.render()
        return None if pictures is None else pictures[0]

    def close(self) -> None:
        """Close the vector."""
        self._vector.close()


def _first_info(infos: Any) -> Any:
    """The info of the only environment, from the info of its vector."""
    if not isinstance(infos, dict):
        return infos  # `Checked` reports it
    found = {}
    for key, values in infos.items():
        if key.startswith("_") and key[1:] in infos:
            continue
        if not np.asarray(infos.get(f"_{key}", True)).all():
            continue
        if isinstance(values, dict):
            found[key] = _first_info(values)
        else:  # one value for each environment, or one for all of them together
            found[key] = values[0] if np.ndim(values) else values
    return found


def _copied(observation: Any) -> Any:
    """A copy of an observation: an array, or a dict or tuple of such."""
    if isinstance(observation, dict):
        return {key: _copied(part) for key, part in observation.items()}
    if isinstance(observation, tuple):
        return tuple(_copied(part) for part in observation)
    return np.array(observation)
