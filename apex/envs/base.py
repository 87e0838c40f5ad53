"""The one interface to environments: E of them, stepped together, checked at every step."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from apex.errors import EnvError, EnvFaultError
from apex.types import MAX_REWARD, Array, EnvSpec, StepResult, good_rewards

DEFAULT_FPS = 30.0


class Environments:
    """E environments with gymnasium's NEXT_STEP autoreset, whatever library steps them.

    After a step that ends an episode, the next step ignores that environment's action and
    returns the first observation of a new episode.

    Args:
        vector: the environments.
        env_id: for people to read.
        frame_stack: see `EnvSpec`.
        life_loss_ends: report a lost life (of `info["lives"]`) in `StepResult.life_lost`.
        squeeze: drop the first axis of each observation, which has a length of one.

    Raises:
        EnvError: a space or autoreset mode that apex cannot use.
    """

    def __init__(
        self,
        vector: VectorEnv[Any, Any, Any],
        env_id: str,
        frame_stack: int,
        life_loss_ends: bool,
        *,
        squeeze: bool = False,
    ) -> None:
        mode = vector.metadata.get("autoreset_mode")
        if mode != AutoresetMode.NEXT_STEP:
            raise EnvError(f"{env_id}: expected the autoreset mode NEXT_STEP, got {mode}")
        self._vector = vector
        self._squeeze = squeeze
        self.num_envs: int = vector.num_envs
        self.spec = _spec(vector, env_id, frame_stack, self._squeeze)
        self._shape = (self.num_envs, *self.spec.observation_shape)
        self._dtype = np.dtype(self.spec.observation_dtype)
        self._life_loss_ends = life_loss_ends
        self._lives = np.zeros(self.num_envs, dtype=np.int64)
        self._steps = 0

    def reset(self, seed: int) -> Array:
        """Begin an episode in each environment: `[E, *observation_shape]`."""
        try:
            observations, info = self._vector.reset(seed=seed)
        except Exception as error:
            raise EnvFaultError(f"{self.spec.env_id}: reset raised {_describe(error)}") from error
        self._lives = np.asarray(info.get("lives", self._lives)).copy()
        return self._checked(observations)

    def step(self, actions: npt.NDArray[np.int64]) -> StepResult:
        """Step all environments.

        Raises:
            EnvFaultError: an environment raised, or returned what is no observation or reward.
        """
        self._steps += 1
        try:
            observations, rewards, terminated, truncated, info = self._vector.step(actions)
        except Exception as error:
            raise self._fault(f"raised {_describe(error)}") from error
        rewards = np.asarray(rewards, dtype=np.float64)
        if not good_rewards(rewards):
            raise self._fault(f"returned rewards that are not within ±{MAX_REWARD:g}: {rewards}")
        lives = self._lives
        if "lives" in info:  # gymnasium marks those that reported theirs in `_lives`
            lives = np.where(info.get("_lives", True), info["lives"], lives)
        lost = (lives < self._lives) & ~terminated & self._life_loss_ends
        self._lives = lives
        return StepResult(self._checked(observations), rewards, terminated, truncated, lost)

    def render(self) -> list[npt.NDArray[np.uint8]]:
        """One picture of each environment, `[H, W, 3]`, as it is after the last step.

        Raises:
            EnvFaultError: they were not made to be rendered.
        """
        if self._vector.render_mode != "rgb_array":
            raise EnvFaultError(
                f"{self.spec.env_id}: it gives no pictures; make it with render_mode='rgb_array'"
            )
        try:
            pictures = self._vector.render()
        except Exception as error:
            raise EnvFaultError(f"{self.spec.env_id}: render raised {_describe(error)}") from error
        assert pictures is not None
        return [np.asarray(picture, dtype=np.uint8) for picture in pictures]

    @property
    def frames_per_second(self) -> float:
        """Pictures a second at which people would watch it."""
        return float(self._vector.metadata.get("render_fps", DEFAULT_FPS))

    def _checked(self, observations: Any) -> Array:
        array: Array = np.asarray(observations)
        if self._squeeze:
            array = array[:, 0]
        if array.shape != self._shape:
            raise self._fault(f"returned observations {array.shape}, expected {self._shape}")
        if array.dtype != self._dtype:
            array = array.astype(self._dtype)
        if self._dtype.kind == "f" and not np.isfinite(array).all():
            raise self._fault("returned an observation that is not finite")
        return array

    def _fault(self, what: str) -> EnvFaultError:
        return EnvFaultError(f"{self.spec.env_id}: step {self._steps} {what}")

    def close(self) -> None:
        """Close all environments."""
        self._vector.close()


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _spec(
    vector: VectorEnv[Any, Any, Any], env_id: str, frame_stack: int, squeeze: bool
) -> EnvSpec:
    observation, action = vector.single_observation_space, vector.single_action_space
    if not isinstance(observation, gym.spaces.Box):
        raise EnvError(
            f"{env_id}: expected a Box observation space, got {observation}; wrap the environment "
            "with gymnasium.wrappers.FlattenObservation"
        )
    if not isinstance(action, gym.spaces.Discrete) or action.start != 0:
        raise EnvError(
            f"{env_id}: expected a Discrete action space that starts at 0, got {action}; "
            "choose an algorithm and an environment that fit"
        )
    shape = tuple(observation.shape[1:] if squeeze else observation.shape)
    is_image = observation.dtype == np.uint8 and len(shape) >= 2
    dtype = "uint8" if observation.dtype == np.uint8 else "float32"
    if is_image and len(shape) > 3:
        raise EnvError(f"{env_id}: expected images of rank 2 or 3, got {shape}")
    stack = (frame_stack or 1) if is_image else 0
    return EnvSpec(env_id, shape, dtype, stack, int(action.n))
