"""Register the MinAtar games (pip install MinAtar): 10x10 boolean images with several channels.

apex run --config examples/minatar-breakout.toml
"""

from minatar.gym import register_envs

register_envs()
