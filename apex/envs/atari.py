"""Atari games: images from ALE's vector environment, RAM observations from gymnasium."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from apex.config.sections import EnvConfig
from apex.envs.activity import Activity
from apex.envs.atari_games import game_of
from apex.envs.base import Environments
from apex.envs.vector import SerialVectorEnv, info_keys
from apex.errors import EnvError, EnvFaultError

DEFAULT_FRAME_STACK = 4
SCREEN = (210, 160)
SCREEN_FPS = 60.0


def make_atari(
    config: EnvConfig, num_envs: int, *, render: bool = False, activity: Activity | None = None
) -> Environments:
    """Make Atari environments from a configuration.

    Observations are single frames: the actor stacks them, and an item stores each once. Rewards
    are unclipped: the actor clips them, so that it can report unclipped returns.

    Raises:
        EnvError: ale-py is not installed, or the game is unknown.
    """
    if config.kwargs:
        raise EnvError("env.kwargs: expected none for Atari; use the other keys of [env] instead")
    frame_stack = config.frame_stack
    if config.obs_type == "ram":
        vector = _ram_vector(config, num_envs, render, activity)
    else:
        frame_stack = frame_stack or DEFAULT_FRAME_STACK
        grayscale = config.obs_type == "grayscale"
        vector = _image_vector(config, num_envs, config.frame_size, grayscale)
        if render:
            camera = _image_vector(config, num_envs, SCREEN, grayscale=False)
            vector = FilmedAtari(vector, camera, config.frame_skip)
    return Environments(
        vector,
        config.id,
        frame_stack,
        config.life_loss_ends,
        squeeze=config.obs_type != "ram",
        activity=activity,
        metrics=config.metrics,
    )


def _max_frames(config: EnvConfig) -> int:
    """Emulator frames after which an episode is truncated."""
    steps = config.max_episode_steps
    return min(config.max_episode_frames, steps * config.frame_skip or config.max_episode_frames)


def _image_vector(
    config: EnvConfig, num_envs: int, frame_size: tuple[int, int], grayscale: bool
) -> VectorEnv[Any, Any, Any]:
    game = game_of(config.id)
    from ale_py.vector_env import AtariVectorEnv

    height, width = frame_size
    return AtariVectorEnv(
        game,
        num_envs,
        num_threads=1,
        max_num_frames_per_episode=_max_frames(config),
        repeat_action_probability=config.repeat_action_probability,
        full_action_space=config.full_action_space,
        autoreset_mode=AutoresetMode.NEXT_STEP,
        img_height=height,
        img_width=width,
        grayscale=grayscale,
        stack_num=1,
        frameskip=config.frame_skip,
        noop_max=config.noop_max,
        reward_clipping=False,
        use_fire_reset=config.fire_reset,
    )


class FilmedAtari(VectorEnv[Any, Any, Any]):
    """ALE's vector environment with `render`, which ALE's own does not have.

    A second environment, the camera, plays the same game and gives pictures in colour. With the
    same seed and actions both play identically, random no-ops and sticky actions included; every
    step checks that they do.

    Args:
        played: the environment whose observations the policy sees.
        camera: the environment of the pictures; same game and settings, other frames.
        frame_skip: emulator frames per step.
    """

    def __init__(
        self, played: VectorEnv[Any, Any, Any], camera: VectorEnv[Any, Any, Any], frame_skip: int
    ) -> None:
        self._played = played
        self._camera = camera
        self._pictures: Any = None
        self.metadata = {**played.metadata, "render_fps": SCREEN_FPS / frame_skip}
        self.render_mode = "rgb_array"
        self.num_envs = played.num_envs
        self.single_observation_space = played.single_observation_space
        self.single_action_space = played.single_action_space

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """As in gymnasium."""
        self._pictures = self._camera.reset(seed=seed, options=options)[0].copy()
        return self._played.reset(seed=seed, options=options)

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """As in gymnasium. Raises `EnvFaultError`."""
        pictures, rewards, terminated, truncated, _ = self._camera.step(actions)
        self._pictures = pictures.copy()
        result = self._played.step(actions)
        if not all(
            np.array_equal(a, b) for a, b in zip(result[1:4], (rewards, terminated, truncated))
        ):
            raise EnvFaultError(
                "the rendered copy of the game no longer matches the game that is played"
            )
        return result

    def render(self) -> Any:
        """The camera's last pictures, `[E, H, W, 3] uint8`."""
        return self._pictures[:, 0]

    def close(self, **kwargs: Any) -> None:
        """Close both environments."""
        self._played.close()
        self._camera.close()


def _ram_vector(
    config: EnvConfig, num_envs: int, render: bool, activity: Activity | None
) -> VectorEnv[Any, Any, Any]:
    game_of(config.id)

    def make() -> gym.Env[Any, Any]:
        env = gym.make(
            config.id,
            obs_type="ram",
            render_mode="rgb_array" if render else None,
            frameskip=config.frame_skip,
            repeat_action_probability=config.repeat_action_probability,
            full_action_space=config.full_action_space,
            max_num_frames_per_episode=_max_frames(config),
        )
        return EpisodeStart(env, config.noop_max, config.fire_reset)

    return SerialVectorEnv([make] * num_envs, info_keys(config), activity)


class EpisodeStart(gym.Wrapper[Any, Any, Any, Any]):
    """Starts an episode as ALE's vector environment does: no-ops, then FIRE if there is one."""

    def __init__(self, env: gym.Env[Any, Any], noop_max: int, fire_reset: bool) -> None:
        super().__init__(env)
        meanings = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
        self._noop_max = noop_max
        self._fire = meanings.index("FIRE") if fire_reset and "FIRE" in meanings else None

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        noops = self.np_random.integers(0, self._noop_max + 1) if self._noop_max else 0
        for action in [0] * int(noops) + ([] if self._fire is None else [self._fire]):
            observation, _, terminated, truncated, info = self.env.step(action)
            if terminated or truncated:
                observation, info = self.env.reset()
        return observation, info
