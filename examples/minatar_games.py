"""The games of MinAtar (pip install MinAtar): images of 10x10 truths in several channels.

apex run --config examples/minatar-breakout.toml
"""

from minatar.gym import register_envs

register_envs()
