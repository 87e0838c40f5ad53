"""Atari games by ALE's own vector environment; RAM observations by gymnasium."""

from __future__ import annotations

import re
from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from apex.config import EnvConfig
from apex.envs.base import Environments
from apex.errors import EnvError

DEFAULT_FRAME_STACK = 4


def make_atari(config: EnvConfig, num_envs: int) -> Environments:
    """Atari environments as `config` asks for.

    Frames come singly: the actor stacks them, and an item stores each once. Rewards come whole:
    clipping is the actor's, so that returns can be reported unclipped.

    Raises:
        EnvError: ale-py is not installed, or the game is unknown.
    """
    if config.kwargs:
        raise EnvError("env.kwargs: Atari takes none; use the fields of [env]")
    make = _ram_vector if config.obs_type == "ram" else _image_vector
    return Environments(
        make(config, num_envs),
        config.id,
        config.frame_stack or DEFAULT_FRAME_STACK,
        config.life_loss_ends,
    )


def _image_vector(config: EnvConfig, num_envs: int) -> VectorEnv[Any, Any, Any]:
    try:
        from ale_py import roms
        from ale_py.vector_env import AtariVectorEnv
    except ImportError as error:
        raise EnvError(
            f"{config.id} needs ale-py ({error}): pip install apex-suite[atari]"
        ) from None
    game = _snake_case(config.id)
    if game not in roms.get_all_rom_ids():
        raise EnvError(f"{config.id}: ALE has no game '{game}'; see `ale_py.roms`")
    height, width = config.frame_size
    return AtariVectorEnv(
        game,
        num_envs,
        num_threads=1,
        max_num_frames_per_episode=config.max_episode_frames,
        repeat_action_probability=config.repeat_action_probability,
        full_action_space=config.full_action_space,
        autoreset_mode=AutoresetMode.NEXT_STEP,
        img_height=height,
        img_width=width,
        grayscale=config.obs_type == "grayscale",
        stack_num=1,
        frameskip=config.frame_skip,
        noop_max=config.noop_max,
        reward_clipping=False,
        use_fire_reset=config.fire_reset,
    )


def _snake_case(env_id: str) -> str:
    name = env_id.removeprefix("ALE/").partition("-")[0]
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _ram_vector(config: EnvConfig, num_envs: int) -> VectorEnv[Any, Any, Any]:
    import ale_py

    gym.register_envs(ale_py)

    def make() -> gym.Env[Any, Any]:
        env = gym.make(
            config.id,
            obs_type="ram",
            frameskip=config.frame_skip,
            repeat_action_probability=config.repeat_action_probability,
            full_action_space=config.full_action_space,
            max_num_frames_per_episode=config.max_episode_frames,
        )
        return EpisodeStart(env, config.noop_max, config.fire_reset)

    return SyncVectorEnv([make] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP)


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
