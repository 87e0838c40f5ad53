"""Stable-Baselines3's DQN on Pong, with apex's network as a custom policy."""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium as gym
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.env_util import make_atari_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecFrameStack
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork

from apex.envs.spec import EnvSpec
from apex.networks.dueling import DuelingQNetwork
from benchmarks.peers.loops.pong import CONVOLUTIONS, STREAM_WIDTH
from benchmarks.peers.loops.serve import Step, serve

BUFFER = 20_000
LEARNING_STARTS = 1_000
STEPS = 256
"""Env steps of all environments between two readings of the clock."""


class Frames(BaseFeaturesExtractor):
    """Passes the frames to the network unchanged."""

    def __init__(self, observation_space: Any) -> None:
        super().__init__(observation_space, features_dim=1)

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """`[B, 4, 84, 84]`, unchanged."""
        return observations


class DuelingPolicy(DQNPolicy):
    """Stable-Baselines3's policy around apex's network."""

    def make_q_net(self) -> QNetwork:
        """Create the Q-network, as the base class does, with apex's network."""
        arguments = self._update_features_extractor(self.net_args, features_extractor=None)
        network = QNetwork(**arguments)
        shape = self.observation_space.shape
        spec = EnvSpec(
            env_id="Pong", observation_shape=shape[1:], observation_dtype="uint8",
            num_actions=int(self.action_space.n), frame_stack=shape[0],
        )  # fmt: skip
        network.q_net = DuelingQNetwork(spec, CONVOLUTIONS, (), (STREAM_WIDTH,))
        return network.to(self.device)


def training(threads: int, num_envs: int, samples_per_step: int, batch: int) -> Step:
    """Step of a training DQN; counts env steps and trained samples.

    Args:
        threads: torch threads.
        num_envs: environments in this process.
        samples_per_step: trained samples per env step.
        batch: samples per update.
    """
    torch.set_num_threads(threads)
    gym.register_envs(ale_py)
    environments = VecFrameStack(make_atari_env("PongNoFrameskip-v4", num_envs, seed=1), 4)
    between = max(1, batch // (samples_per_step * num_envs))
    model = DQN(
        DuelingPolicy,
        environments,
        policy_kwargs={"features_extractor_class": Frames, "normalize_images": False},
        learning_rate=1e-4,
        buffer_size=BUFFER,
        learning_starts=LEARNING_STARTS,
        batch_size=batch,
        train_freq=between,
        gradient_steps=between * num_envs * samples_per_step // batch,
        n_steps=3,
        device="cpu",
        seed=1,
    )

    def step() -> dict[str, float]:
        steps, updates = model.num_timesteps, model._n_updates
        model.learn(STEPS, log_interval=None, reset_num_timesteps=False)
        return {
            "env_steps": model.num_timesteps - steps,
            "trained_samples": (model._n_updates - updates) * batch,
        }

    model.learn(LEARNING_STARTS + STEPS, log_interval=None)
    return step


if __name__ == "__main__":
    serve(training)
