"""The interface to environments: E of them, stepped together and checked at every step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from apex import plugins
from apex.data.schema import Array
from apex.envs.activity import Activity
from apex.envs.env_checks import INTERFACE, MisbehavedError
from apex.envs.info_metrics import InfoMetrics
from apex.envs.spaces import env_spec, to_env_actions
from apex.envs.spec import MAX_REWARD, StepResult, good_rewards
from apex.envs.vector import Infos, reported
from apex.errors import ConfigError, EnvError, EnvFaultError

log = logging.getLogger("apex.envs")

DEFAULT_FPS = 30.0
PICTURES = (
    "let the environment take render_mode='rgb_array' in its constructor and keep it as "
    "self.render_mode, name it in metadata['render_modes'], and let render() return one picture, "
    "[height, width, 3] uint8"
)


class Environments:
    """E environments of any library, with gymnasium's NEXT_STEP autoreset.

    After a step that ends an episode, the next step ignores that environment's action and
    returns the first observation of a new episode.

    Args:
        vector: the environments.
        env_id: the environment's name in messages.
        frame_stack: see `EnvSpec`.
        life_loss_ends: report a lost life (of `info["lives"]`) in `StepResult.life_lost`.
        squeeze: drop the first axis of each observation, which has a length of one.
        activity: is told of each call that begins and ends; None: nobody watches.
        metrics: names of scalars in `info` for `StepResult.metrics`, besides `success`.

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
        activity: Activity | None = None,
        metrics: Sequence[str] = (),
    ) -> None:
        mode = vector.metadata.get("autoreset_mode")
        if mode != AutoresetMode.NEXT_STEP:
            raise EnvError(f"{env_id}: expected the autoreset mode NEXT_STEP, got {mode}")
        self._vector = vector
        self._squeeze = squeeze
        self._activity = activity or Activity()
        self.num_envs: int = vector.num_envs
        self.spec = env_spec(
            vector.single_observation_space, vector.single_action_space, env_id, frame_stack,
            squeeze=squeeze,
        )  # fmt: skip
        self._shape = (self.num_envs, *self.spec.observation_shape)
        self._dtype = np.dtype(self.spec.observation_dtype)
        self._bounds = _finite_bounds(vector.single_observation_space)
        self._life_loss_ends = life_loss_ends
        self._metrics = InfoMetrics(metrics, self.num_envs, env_id)
        self._lives = np.zeros(self.num_envs, dtype=np.int64)
        self._steps = 0

    def reset(self, seed: int) -> Array:
        """Begin an episode in each environment; return observations `[E, *observation_shape]`."""
        self._activity.begin("reset")
        try:
            observations, infos = self._vector.reset(seed=seed)
            self._lives = self._lives_of(infos)
        except Exception as error:
            raise EnvFaultError(f"{self.spec.env_id}: reset {_describe(error)}") from error
        finally:
            self._activity.end()
        return self._checked(observations)

    def step(self, actions: Array) -> StepResult:
        """Step all environments.

        Args:
            actions: `[E, *action shape]`; discrete actions count from 0.

        Raises:
            ConfigError: an invalid action, which is the algorithm's fault, not the environment's.
            EnvFaultError: an environment raised, or returned an invalid observation or reward.
        """
        bad = self.spec.bad_actions(actions)
        if bad.any():
            raise ConfigError(
                f"the algorithm chose the action {actions[bad][0]}, but {self.spec.env_id} takes "
                f"{self.spec.actions_text}; check its network's outputs and its exploration"
            )
        self._steps += 1
        self._activity.begin("step")
        try:
            taken = to_env_actions(actions, self._vector.single_action_space)
            observations, rewards, terminated, truncated, infos = self._vector.step(taken)
            lives = self._lives_of(infos)
            metrics = self._measured(infos, terminated | truncated)
        except Exception as error:
            raise self._fault(_describe(error)) from error
        finally:
            self._activity.end()
        rewards = np.asarray(rewards, dtype=np.float64)
        if not good_rewards(rewards):
            raise self._fault(
                f"returned rewards that are not within ±{MAX_REWARD:g}: {rewards}; look for a "
                "division by 0 or a diverging state, and terminate the episode before it"
            )
        lost = (lives < self._lives) & ~terminated
        self._lives = lives
        return StepResult(
            self._checked(observations), rewards, terminated, truncated, lost, metrics
        )

    def _measured(
        self, infos: Infos, ended: npt.NDArray[np.bool_]
    ) -> dict[str, npt.NDArray[np.float64]]:
        """`StepResult.metrics` of a step."""
        metrics = self._metrics.read(infos)
        if ended.any():
            self._metrics.warn_of_missing(getattr(self._vector, "last_keys", infos))
        return metrics

    def _lives_of(self, infos: Infos) -> npt.NDArray[np.int64]:
        """Lives of each environment, `[E]`; the last ones where `info` does not report them."""
        values = reported(infos, "lives") if self._life_loss_ends else None
        if values is None:
            return self._lives
        try:
            return np.array(
                [last if value is None else int(value) for value, last in zip(values, self._lives)]
            )
        except (TypeError, ValueError):
            raise MisbehavedError(
                f"returned info['lives'] = {values}; return an integer, or set "
                "env.life_loss_ends = false"
            ) from None

    def render(self) -> list[npt.NDArray[np.uint8]]:
        """One picture per environment, `[H, W, 3] uint8`, after the last step.

        Raises:
            EnvFaultError: the environments were made without rendering.
        """
        if self._vector.render_mode != "rgb_array":
            raise EnvFaultError(
                f"{self.spec.env_id}: expected render_mode='rgb_array', got "
                f"{self._vector.render_mode!r}; {PICTURES}"
            )
        try:
            pictures = self._vector.render()
        except Exception as error:
            what = plugins.describe_error(error, PICTURES)
            raise EnvFaultError(f"{self.spec.env_id}: render {what}") from error
        return [self._picture(one) for one in ([None] if pictures is None else pictures)]

    def _picture(self, returned: Any) -> npt.NDArray[np.uint8]:
        """Convert a picture to `[H, W, 3] uint8`; some environments return grey levels or floats.

        Raises:
            EnvFaultError: it is not a picture.
        """
        pixels: Array = np.asarray(returned)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None].repeat(3, axis=2)
        if pixels.dtype.kind not in "biuf" or pixels.ndim != 3 or pixels.shape[2] not in (3, 4):
            found = f"{pixels.dtype} {pixels.shape}" if pixels.shape else type(returned).__name__
            raise EnvFaultError(f"{self.spec.env_id}: render returned {found}; {PICTURES}")
        if pixels.dtype.kind == "f":
            pixels = np.rint(np.clip(pixels, 0.0, 1.0) * 255.0)
        return pixels[:, :, :3].astype(np.uint8)

    @property
    def frames_per_second(self) -> float:
        """Pictures per second for watching at normal speed."""
        return float(self._vector.metadata.get("render_fps", DEFAULT_FPS))

    def _checked(self, observations: Any) -> Array:
        array: Array = np.asarray(observations)
        if self._squeeze:
            array = array[:, 0]
        if array.shape != self._shape:
            raise self._fault(f"returned observations {array.shape}, expected {self._shape}")
        if array.dtype != self._dtype:
            # Booleans become the darkest and the brightest pixel of an image.
            array = array * np.uint8(255) if array.dtype == np.bool_ else array.astype(self._dtype)
        if self._dtype.kind == "f" and not np.isfinite(array).all():
            raise self._fault(
                "returned an observation that is not finite; look for a division by 0 or a "
                "diverging state, and terminate the episode before it"
            )
        if self._bounds is not None:
            self._warn_out_of_bounds(array, *self._bounds)
        return array

    def _warn_out_of_bounds(self, observations: Array, low: Array, high: Array) -> None:
        """Warn once that observations are outside their space; training uses them all the same."""
        beyond = (observations < low) | (observations > high)
        if not beyond.any():
            return
        self._bounds = None
        env, *element = (int(axis[0]) for axis in np.nonzero(beyond))
        log.warning(
            "%s: step %d: element %s of an observation is %g, outside its observation_space "
            "(%g to %g); if the environment is yours, widen the space or clip the observation. "
            "Training uses the observation as it is; this warning is not repeated",
            self.spec.env_id, self._steps, element, observations[env][tuple(element)],
            low[tuple(element)], high[tuple(element)],
        )  # fmt: skip

    def _fault(self, what: str) -> EnvFaultError:
        return EnvFaultError(f"{self.spec.env_id}: step {self._steps} {what}")

    def close(self) -> None:
        """Close all environments."""
        self._activity.begin("close")
        try:
            self._vector.close()
        finally:
            self._activity.end()


def _describe(error: Exception) -> str:
    """Describe an error of an environment: what happened, where, and what to do."""
    if isinstance(error, MisbehavedError):
        return str(error)
    return plugins.describe_error(error, INTERFACE)


def _finite_bounds(space: gym.Space[Any]) -> tuple[Array, Array] | None:
    """Bounds of observations, with some slack; None if no value of their type is outside."""
    if not isinstance(space, gym.spaces.Box) or space.dtype is None or space.dtype.kind not in "fi":
        return None
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low) | np.isfinite(high)).any():
        return None
    return low - 1e-5 * np.maximum(1.0, np.abs(low)), high + 1e-5 * np.maximum(1.0, np.abs(high))
