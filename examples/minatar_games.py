"""Register the MinAtar games (pip install MinAtar): 10x10 boolean images with several channels.

apex run --config examples/minatar-breakout.toml
"""

import gymnasium as gym
from minatar.gym import register_envs

if "MinAtar/Breakout-v1" not in gym.registry:
    register_envs()
