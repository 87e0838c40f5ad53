"""The interface to environments: E of them, stepped together and checked at every step."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv

from apex import plugins
from apex.data.observations import ACTION_MASK, Observations
from apex.data.schema import Array
from apex.envs.activity import Activity
from apex.envs.env_checks import INTERFACE, MisbehavedError
from apex.envs.info_metrics import InfoMetrics
from apex.envs.observation_checks import CheckedPart
from apex.envs.spaces import (
    Channels,
    env_spec,
    flat_observations,
    flat_spaces,
    to_env_actions,
)
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
        masked: take the mask of the allowed actions from `info["action_mask"]`.
        channels, action_limit: see `env_spec`.
        activity: notes when each call begins and ends; None: calls are not noted.
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
        masked: bool = False,
        channels: Channels = "auto",
        action_limit: float = 0.0,
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
            squeeze=squeeze, masked=masked, channels=channels, action_limit=action_limit,
        )  # fmt: skip
        self._parts = [
            CheckedPart(part, space, vector.num_envs, env_id)
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
        self._metrics = InfoMetrics(metrics, self.num_envs, env_id)
        self._lives = np.zeros(self.num_envs, dtype=np.int64)
        self._steps = 0

    def reset(self, seed: int) -> Observations:
        """Begin an episode in each environment; return observations, `[E, ...]`."""
        self._ended = np.zeros(self.num_envs, dtype=np.bool_)
        self._activity.begin("reset")
        try:
            observations, infos = self._vector.reset(seed=seed)
            self._lives = self._lives_of(infos)
        except plugins.RAISED as error:
            raise EnvFaultError(f"{self.spec.env_id}: reset {_describe(error)}") from error
        finally:
            self._activity.end()
        return self._checked(observations, infos)

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
        self._activity.begin("step")
        try:
            taken = to_env_actions(actions, self._vector.single_action_space)
            observations, rewards, terminated, truncated, infos = self._vector.step(taken)
            lives = self._lives_of(infos)
            metrics = self._measured(infos, terminated | truncated)
        except plugins.RAISED as error:
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
        self._ended = terminated | truncated
        return StepResult(
            self._checked(observations, infos), rewards, terminated, truncated, lost, metrics
        )

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
        except plugins.RAISED as error:
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

    def _checked(self, observations: Any, infos: Infos) -> Observations:
        """Observations as the spec describes them. Raises `EnvFaultError`."""
        found = flat_observations(observations, self._vector.single_observation_space)
        if self._squeeze:
            found = [np.asarray(array)[:, 0] for array in found]
        try:
            arrays = [part.checked(a, self._steps) for part, a in zip(self._parts, found)]
        except MisbehavedError as error:
            raise self._fault(str(error)) from None
        self.offers_action_mask = not self.spec.has_action_mask and ACTION_MASK in infos
        if not self.spec.parts:
            return arrays[0]
        named = {part.name: array for part, array in zip(self.spec.parts, arrays)}
        if self._masked:
            named[ACTION_MASK] = self._mask_of(infos)
        if self.spec.has_action_mask:
            named[ACTION_MASK] = self._allowed = self._checked_mask(named[ACTION_MASK])
        return named

    def _mask_of(self, infos: Infos) -> Array:
        """The mask in `info`, `[E, num_actions] uint8`."""
        shape = (self.num_envs, self.spec.num_actions)
        masks = reported(infos, ACTION_MASK) or [None] * self.num_envs
        missing = [env for env, mask in enumerate(masks) if mask is None]
        if missing:
            raise self._fault(
                f"returned no info['{ACTION_MASK}'] in environment {missing[0]}; "
                "return one from every reset and step, or set env.action_masks to false"
            )
        try:
            return np.stack([np.asarray(mask, np.uint8) for mask in masks]).reshape(shape)
        except (ValueError, TypeError):
            raise self._fault(
                f"returned info['{ACTION_MASK}'] = {masks}; expected {self.spec.num_actions} "
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
        self._activity.begin("close")
        try:
            self._vector.close()
        finally:
            self._activity.end()


def _describe(error: BaseException) -> str:
    """Describe an error of an environment: what happened, where, and what to do."""
    if isinstance(error, MisbehavedError):
        return str(error)
    return plugins.describe_error(error, INTERFACE)
