"""Sets of ready environments: their ids, the extra that installs them, and how they are made."""

from __future__ import annotations

import importlib
import importlib.util
import re
from typing import NamedTuple

import gymnasium as gym

from apex.config import loading
from apex.errors import EnvError


class EnvironmentSet(NamedTuple):
    """Environments of one package."""

    name: str
    """As in `apex envs list NAME`."""
    about: str
    package: str
    """Import name of the package that has them."""
    pattern: str
    """Regular expression of the ids that belong to the set."""
    examples: tuple[str, ...]
    """Ids to name where the package is not installed."""
    extra: str = ""
    """Extra of apex that installs the package; empty: apex itself requires it."""
    listed: str = ""
    """Regular expression of the ids to list, if these are not all of `pattern`."""
    registration: str = ""
    """`module` to import or `module:function` to call, so that gymnasium knows the ids."""
    wrappers: str = ""
    """Module of apex that makes them: `wrappers:ID` is a factory. Empty: gymnasium makes them."""

    @property
    def installed(self) -> bool:
        """Whether the package is there."""
        return importlib.util.find_spec(self.package) is not None

    @property
    def remedy(self) -> str:
        """The command that installs the set."""
        return f"pip install 'apex-suite[{self.extra}]'" if self.extra else "make setup"

    def register(self) -> None:
        """Make the ids known to gymnasium, if they are not yet."""
        module, _, function = self.registration.partition(":")
        if module and not any(re.fullmatch(self.pattern, one) for one in gym.registry):
            loaded = importlib.import_module(module)
            if function:
                getattr(loaded, function)()

    def ids(self) -> list[str]:
        """All ids to list; the examples if the package is not installed."""
        if not self.installed:
            return list(self.examples)
        self.register()
        pattern = re.compile(self.listed or self.pattern)
        return sorted(one for one in gym.registry if pattern.fullmatch(one))

    def presets(self) -> list[str]:
        """Presets whose environment belongs to the set."""
        named = {name: loading.preset_table(name)["env"]["id"] for name in loading.preset_names()}
        return [name for name, env_id in named.items() if set_of(env_id) == self]


SETS = (
    EnvironmentSet(
        "classic",
        "gymnasium's classic control",
        package="gymnasium",
        pattern=r"(CartPole-v1|Acrobot-v1|MountainCar-v0|MountainCarContinuous-v0|Pendulum-v1)",
        examples=("CartPole-v1", "Pendulum-v1"),
    ),
    EnvironmentSet(
        "atari",
        "the 104 games of the Arcade Learning Environment",
        package="ale_py",
        pattern=r"ALE/.*",
        examples=("ALE/Pong-v5", "ALE/Breakout-v5"),
        extra="atari",
        listed=r"ALE/\w+-v5",
        registration="ale_py",
    ),
    EnvironmentSet(
        "minatar",
        "MinAtar's five games: 10x10 pixels, a channel for each kind of object",
        package="minatar",
        pattern=r"MinAtar/.*",
        examples=(
            "MinAtar/Asterix-v1", "MinAtar/Breakout-v1", "MinAtar/Freeway-v1",
            "MinAtar/Seaquest-v1", "MinAtar/SpaceInvaders-v1",
        ),
        extra="minatar",
        listed=r"MinAtar/.*-v1",
        registration="minatar.gym:register_envs",
    ),
    EnvironmentSet(
        "box2d",
        "gymnasium's Box2D: a lander, a walker, a racing car",
        package="Box2D",
        pattern=r"(LunarLander(Continuous)?|BipedalWalker(Hardcore)?|CarRacing)-v3",
        examples=("LunarLander-v3", "BipedalWalker-v3", "CarRacing-v3"),
        extra="box2d",
    ),
    EnvironmentSet(
        "mujoco",
        "gymnasium's MuJoCo: robots with continuous actions",
        package="mujoco",
        pattern=r"(Ant|HalfCheetah|Hopper|Humanoid|HumanoidStandup|InvertedDoublePendulum|"
        r"InvertedPendulum|Pusher|Reacher|Swimmer|Walker2d)-v5",
        examples=("HalfCheetah-v5", "Ant-v5", "Humanoid-v5"),
        extra="mujoco",
    ),
    EnvironmentSet(
        "minigrid",
        "MiniGrid's grid worlds, seen in part, with action masks",
        package="minigrid",
        pattern=r"MiniGrid-.*",
        examples=("MiniGrid-Empty-5x5-v0", "MiniGrid-DoorKey-5x5-v0"),
        extra="minigrid",
        # WFC's pictures are missing in the wheel of minigrid 3.2.0.
        listed=r"MiniGrid-(?!WFC).*",
        registration="minigrid",
        wrappers="apex.envs.minigrid",
    ),
    EnvironmentSet(
        "dm-control",
        "the DeepMind Control Suite, by shimmy",
        package="shimmy",
        pattern=r"dm_control/.*",
        examples=("dm_control/cartpole-swingup-v0", "dm_control/cheetah-run-v0"),
        extra="dm-control",
        # Without quadruped: in dm_control 1.0.34 it needs numpy.in1d, which NumPy 2.4 removed.
        listed=r"dm_control/(?!compatibility|quadruped)\w+-\w+-v0",
        registration="shimmy",
        wrappers="apex.envs.dm_control",
    ),
    EnvironmentSet(
        "vizdoom",
        "ViZDoom's scenarios: a screen in colour beside game variables",
        package="vizdoom",
        pattern=r"Vizdoom.*",
        examples=("VizdoomBasic-v1", "VizdoomHealthGathering-v1"),
        extra="vizdoom",
        # Without whole games, which need their WAD, and Deathmatch, whose actions are a Dict.
        listed=r"Vizdoom(?!Doom|Freedoom|Deathmatch)\w+(-MultiBinary)?-v1",
        registration="vizdoom.gymnasium_wrapper",
        wrappers="apex.envs.vizdoom",
    ),
)  # fmt: skip


def set_of(env_id: str) -> EnvironmentSet | None:
    """The set that an environment belongs to; None if it is in none."""
    module, _, name = env_id.rpartition(":")
    for one in SETS:
        if re.fullmatch(one.pattern, name) and module in ("", one.wrappers):
            return one
    return None


def resolve(env_id: str) -> str:
    """Make the id of a set's environment known to gymnasium.

    Args:
        env_id: `env.id` of the configuration.

    Returns:
        `module:ID` if a module of apex makes it, else the id.

    Raises:
        EnvError: the set is not installed.
    """
    one = set_of(env_id)
    if one is None:
        return env_id
    if not one.installed:
        raise EnvError(f"env.id = '{env_id}' needs the package {one.package}: {one.remedy}")
    one.register()
    return f"{one.wrappers}:{env_id}" if one.wrappers and ":" not in env_id else env_id
