"""The interface to environments: E of them, stepped together and checked at every step."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from apex import plugins
from apex.data.observations import ACTION_MASK, Observations
from apex.data.schema import Array
from apex.envs.env_checks import INTERFACE, MisbehavedError
from apex.envs.spaces import (
    Channels,
    env_spec,
    flat_observations,
    flat_spaces,
    to_env_actions,
)
from apex.envs.spec import MAX_REWARD, ObservationPart, StepResult, good_rewards
from apex.errors import ConfigError, EnvError, EnvFaultError

log = logging.getLogger("apex.envs")

DEFAULT_FPS = 30.0


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
        masked: take the mask of the allowed actions from `info["action_mask"]`.
        channels, action_limit: see `env_spec`.

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
        masked: bool = False,
        channels: Channels = "auto",
        action_limit: float = 0.0,
    ) -> None:
        mode = vector.metadata.get("autoreset_mode")
        if mode != AutoresetMode.NEXT_STEP:
            raise EnvError(f"{env_id}: expected the autoreset mode NEXT_STEP, got {mode}")
        self._vector = vector
        self._squeeze = squeeze
        self.num_envs: int = vector.num_envs
        self.spec = env_spec(
            vector.single_observation_space, vector.single_action_space, env_id, frame_stack,
            squeeze=squeeze, masked=masked, channels=channels, action_limit=action_limit,
        )  # fmt: skip
        self._parts = [
            _CheckedPart(part, space, vector.num_envs, env_id)
            for part, space in zip(
                self.spec.all_parts, flat_spaces(vector.single_observation_space)
            )
        ]
        self._masked = masked
        self.offers_action_mask = False
        """Whether the last `info` had an action mask that is not used."""
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        self._allowed: Array | None = None
        """The mask of the last observations, `[E, num_actions]`."""
        self._life_loss_ends = life_loss_ends
        self._lives = np.zeros(self.num_envs, dtype=np.int64)
        self._steps = 0

    def reset(self, seed: int) -> Observations:
        """Begin an episode in each environment; return observations, `[E, ...]`."""
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        try:
            observations, info = self._vector.reset(seed=seed)
            self._lives = self._lives_of(info).copy()
        except Exception as error:
            raise EnvFaultError(f"{self.spec.env_id}: reset {_describe(error)}") from error
        return self._checked(observations, info)

    def step(self, actions: Array) -> StepResult:
        """Step all environments.

        Args:
            actions: `[E, *action shape]`; discrete actions count from 0.

        Raises:
            ConfigError: an invalid action, which is the algorithm's fault, not the environment's.
            EnvFaultError: an environment raised, or returned an invalid observation or reward.
        """
        self._check_actions(actions)
        self._steps += 1
        try:
            taken = to_env_actions(actions, self._vector.single_action_space)
            observations, rewards, terminated, truncated, info = self._vector.step(taken)
            lives = self._lives_of(info)
        except Exception as error:
            raise self._fault(_describe(error)) from error
        rewards = np.asarray(rewards, dtype=np.float64)
        if not good_rewards(rewards):
            raise self._fault(
                f"returned rewards that are not within ±{MAX_REWARD:g}: {rewards}; look for a "
                "division by 0 or a diverging state, and terminate the episode before it"
            )
        lost = (lives < self._lives) & ~terminated & self._life_loss_ends
        self._lives = lives
        self._ended = terminated | truncated
        return StepResult(self._checked(observations, info), rewards, terminated, truncated, lost)

    def _check_actions(self, actions: Array) -> None:
        bad = self.spec.bad_actions(actions)
        if bad.any():
            raise ConfigError(
                f"the algorithm chose the action {actions[bad][0]}, but {self.spec.env_id} takes "
                f"{self.spec.actions_text}; check its network's outputs and its exploration"
            )
        if self._allowed is None:
            return
        bad = self._allowed[np.arange(self.num_envs), actions] == 0
        if bad.any():
            env = int(np.flatnonzero(bad)[0])
            raise ConfigError(
                f"the algorithm chose the action {actions[env]} in environment {env} of "
                f"{self.spec.env_id}, but the action mask allows only "
                f"{np.flatnonzero(self._allowed[env]).tolist()}; give forbidden actions the value "
                "-inf before the exploration chooses (apex.api.masked_values)"
            )

    def _lives_of(self, info: dict[str, Any]) -> npt.NDArray[np.int64]:
        """Lives of each environment; gymnasium marks in `_lives` those that reported them."""
        if "lives" not in info:
            return self._lives
        reported = np.asarray(info["lives"], dtype=np.int64)
        return np.where(info.get("_lives", True), reported, self._lives)

    def render(self) -> list[npt.NDArray[np.uint8]]:
        """One picture per environment, `[H, W, 3] uint8`, after the last step.

        Raises:
            EnvFaultError: the environments were made without rendering.
        """
        if self._vector.render_mode != "rgb_array":
            raise EnvFaultError(
                f"{self.spec.env_id}: expected render_mode='rgb_array', got "
                f"{self._vector.render_mode!r}; let the environment take it and return pictures"
            )
        try:
            pictures = self._vector.render()
        except Exception as error:
            raise EnvFaultError(f"{self.spec.env_id}: render {_describe(error)}") from error
        assert pictures is not None
        return [_picture(np.asarray(one)) for one in pictures]

    @property
    def frames_per_second(self) -> float:
        """Pictures per second for watching at normal speed."""
        return float(self._vector.metadata.get("render_fps", DEFAULT_FPS))

    def _checked(self, observations: Any, info: dict[str, Any]) -> Observations:
        """Observations as the spec describes them. Raises `EnvFaultError`."""
        found = flat_observations(observations, self._vector.single_observation_space)
        if self._squeeze:
            found = [np.asarray(array)[:, 0] for array in found]
        try:
            arrays = [part.checked(a, self._steps) for part, a in zip(self._parts, found)]
        except MisbehavedError as error:
            raise self._fault(str(error)) from None
        if not self.spec.parts:
            self.offers_action_mask = ACTION_MASK in info
            return arrays[0]
        named = {part.name: array for part, array in zip(self.spec.parts, arrays)}
        if self._masked:
            named[ACTION_MASK] = self._mask_of(info)
        if self.spec.has_action_mask:
            named[ACTION_MASK] = self._allowed = self._checked_mask(named[ACTION_MASK])
        else:
            self.offers_action_mask = ACTION_MASK in info
        return named

    def _mask_of(self, info: dict[str, Any]) -> Array:
        """The mask in `info`, `[E, num_actions] uint8`."""
        shape = (self.num_envs, self.spec.num_actions)
        given = info.get(ACTION_MASK)
        present = np.broadcast_to(info.get(f"_{ACTION_MASK}", given is not None), self.num_envs)
        if not present.all():
            raise self._fault(
                f"returned no info['{ACTION_MASK}'] in environment {int(np.argmin(present))}; "
                "return one from every reset and step, or set env.action_masks to false"
            )
        try:
            return np.stack([np.asarray(mask, np.uint8) for mask in given]).reshape(shape)  # type: ignore[union-attr]
        except (ValueError, TypeError):
            raise self._fault(
                f"returned info['{ACTION_MASK}'] = {given}; expected {self.spec.num_actions} "
                "numbers, 1 for each action that is allowed and 0 for the others"
            ) from None

    def _checked_mask(self, mask: Array) -> Array:
        """A mask of zeros and ones that allows an action wherever one will be taken.

        The step after an end ignores its action, so all are allowed there if none is.
        """
        allowed: Array = (mask != 0).astype(np.uint8)
        none = ~allowed.any(axis=1)
        if not none.any():
            return allowed
        allowed[none & self._ended] = 1
        none &= ~self._ended
        if none.any():
            raise self._fault(
                f"environment {int(np.flatnonzero(none)[0])}: the action mask forbids all "
                f"{self.spec.num_actions} actions; allow one, or end the episode"
            )
        return allowed

    def _fault(self, what: str) -> EnvFaultError:
        return EnvFaultError(f"{self.spec.env_id}: step {self._steps} {what}")

    def close(self) -> None:
        """Close all environments."""
        self._vector.close()


def _picture(pixels: Array) -> npt.NDArray[np.uint8]:
    """Convert pixels to uint8; some environments return floats from 0 to 1."""
    if pixels.dtype.kind == "f":
        pixels = np.rint(np.clip(pixels, 0.0, 1.0) * 255.0)
    return pixels.astype(np.uint8)


def _describe(error: Exception) -> str:
    """Describe an error of an environment: what happened, where, and what to do."""
    if isinstance(error, MisbehavedError):
        return str(error)
    return plugins.describe_error(error, INTERFACE)


class _CheckedPart:
    """Checks and converts one array of the observations.

    Args:
        part: its description.
        space: the space that it comes from.
        num_envs: E.
        env_id: the environment's name in messages.
    """

    def __init__(
        self, part: ObservationPart, space: gym.Space[Any], num_envs: int, env_id: str
    ) -> None:
        self._env_id = env_id
        self._where = f" '{part.name}'" if part.name else ""
        self._shape = (num_envs, *part.shape)
        self._dtype = np.dtype(part.dtype)
        self._is_image = part.dtype == "uint8" and part.kind in ("image", "vector")
        self._start = _start(space) if part.kind == "choices" else None
        self._bounds = _finite_bounds(space) if part.kind != "mask" else None

    def checked(self, observations: Any, step: int) -> Array:
        """The array with the part's dtype. Raises `MisbehavedError`."""
        array: Array = np.asarray(observations)
        if array.shape != self._shape:
            raise MisbehavedError(
                f"returned observations{self._where} {array.shape}, expected {self._shape}"
            )
        if self._start is not None:
            array = array - self._start
        if array.dtype != self._dtype:
            # Booleans become the darkest and the brightest pixel of an image.
            scaled = array.dtype == np.bool_ and self._is_image
            array = array * np.uint8(255) if scaled else array.astype(self._dtype)
        if self._dtype.kind == "f" and not np.isfinite(array).all():
            raise MisbehavedError(
                f"returned an observation{self._where} that is not finite; look for a division by "
                "0 or a diverging state, and terminate the episode before it"
            )
        if self._bounds is not None:
            self._warn_out_of_bounds(array, *self._bounds, step)
        return array

    def _warn_out_of_bounds(self, observations: Array, low: Array, high: Array, step: int) -> None:
        """Warn once that observations are outside their space; training uses them all the same."""
        beyond = (observations < low) | (observations > high)
        if not beyond.any():
            return
        self._bounds = None
        env, *element = (int(axis[0]) for axis in np.nonzero(beyond))
        log.warning(
            "%s: step %d: element %s of an observation%s is %g, outside its observation_space "
            "(%g to %g); if the environment is yours, widen the space or clip the observation. "
            "Training uses the observation as it is; this warning is not repeated",
            self._env_id, step, element, self._where, observations[env][tuple(element)],
            low[tuple(element)], high[tuple(element)],
        )  # fmt: skip


def _start(space: gym.Space[Any]) -> Any:
    """The first value of each element of a discrete space."""
    return getattr(space, "start", 0) if not isinstance(space, gym.spaces.MultiBinary) else 0


def _finite_bounds(space: gym.Space[Any]) -> tuple[Array, Array] | None:
    """Bounds of observations, with some slack; None if no value of their type is outside."""
    if not isinstance(space, gym.spaces.Box) or space.dtype is None or space.dtype.kind not in "fi":
        return None
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    if not (np.isfinite(low) | np.isfinite(high)).any():
        return None
    return low - 1e-5 * np.maximum(1.0, np.abs(low)), high + 1e-5 * np.maximum(1.0, np.abs(high))
