"""Report about an environment: observations, actions, and which algorithms fit it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import gymnasium as gym

from apex.algos.registry import ALGORITHMS, make_algorithm
from apex.config import loading, machine_fitting
from apex.config.machine_fitting import Memory
from apex.config.sections import Config
from apex.data.observations import OBSERVATION, Observations
from apex.envs.sets import EnvironmentSet, set_of
from apex.envs.spec import EnvSpec
from apex.errors import ApexError
from apex.host import hardware
from apex.launch.preflight import item_bytes, try_algorithm, try_environment
from apex.launch.prepare import configure
from apex.plugins import NONE


class Seen(NamedTuple):
    """One part of an observation, as the policy gets it."""

    name: str
    kind: str
    """As in `ObservationPart`."""
    shape: tuple[int, ...]
    """Shape of the part in one observation of the environment."""
    dtype: str
    stack: int
    """Consecutive observations that the policy sees; 0: one, stored as a column."""


class Fit(NamedTuple):
    """Whether an algorithm can learn the environment, and what its table takes."""

    algorithm: str
    preset: str
    """Preset whose settings it was tried with; empty: the defaults."""
    refusal: str
    """Why it cannot, and what to change; empty: it fits."""
    item_bytes: float = 0.0
    """Estimated bytes of an item in the table."""
    capacity: int = 0
    """Items of a full table on this machine."""

    @property
    def table_bytes(self) -> float:
        """Estimated bytes of a full table."""
        return self.item_bytes * self.capacity


class EnvironmentReport(NamedTuple):
    """What `apex envs show` prints."""

    env_id: str
    set_name: str
    """Name of its set; empty: it is in none."""
    observation: list[Seen]
    actions: str
    masked: bool
    """Whether the environment says which actions are possible."""
    step_limit: int | None
    """Steps after which gymnasium truncates an episode; None: the environment has its own, or
    none."""
    fits: list[Fit]


def report(
    env_id: str, settings: Sequence[str] = (), preset: str | None = None
) -> EnvironmentReport:
    """Make an environment, look at it, and try each algorithm of apex on it.

    Args:
        env_id: `env.id`.
        settings: `section.key=value`, as of `--set`.
        preset: preset whose settings are used; None: one of the environment's set that has the
            algorithm, or else the set's first.

    Raises:
        ApexError: a setting is wrong, or the environment cannot be used.
    """
    found = set_of(env_id)
    first = preset or next(iter(_presets(found)), None)
    config = _config(env_id, settings, first)
    _, spec, observation = try_environment(config.env, NONE, num_envs=1)
    tried = Tried(env_id, settings, spec, observation)
    return EnvironmentReport(
        spec.env_id,
        found.name if found is not None else "",
        seen(spec),
        spec.actions_text,
        spec.has_action_mask,
        step_limit(config),
        [_fit(name, [preset] if preset else _presets_for(name, env_id, found), tried)
         for name in ALGORITHMS],
    )  # fmt: skip


def seen(spec: EnvSpec) -> list[Seen]:
    """The parts of an observation."""
    return [
        Seen(
            part.name or OBSERVATION,
            part.kind,
            part.shape,
            part.dtype,
            spec.frame_stack if part.kind == "image" else 0,
        )
        for part in spec.all_parts
    ]


def step_limit(config: Config) -> int | None:
    """Steps after which an episode is truncated, if that is known before it."""
    if config.env.max_episode_steps:
        return config.env.max_episode_steps
    if config.env.id.startswith("ALE/"):
        return config.env.max_episode_frames // config.env.frame_skip
    try:
        return gym.spec(config.env.id.rpartition(":")[2]).max_episode_steps
    except gym.error.Error:  # a class or function of the user's own
        return None


def _presets(found: EnvironmentSet | None) -> list[str]:
    return found.presets() if found is not None else []


def _presets_for(algorithm: str, env_id: str, found: EnvironmentSet | None) -> list[str | None]:
    """The preset to try an algorithm with, then None for the defaults.

    A preset of the algorithm comes before others, and then one of this very environment.
    """

    def agreement(preset: str) -> tuple[bool, bool]:
        table = loading.preset_table(preset)
        return table["algorithm"]["name"] == algorithm, table["env"]["id"] == env_id

    names = _presets(found)
    return [max(names, key=agreement), None] if names else [None]


class Tried(NamedTuple):
    """An environment that was made, and what was asked about it."""

    env_id: str
    settings: Sequence[str]
    spec: EnvSpec
    observation: Observations


def _config(
    env_id: str, settings: Sequence[str], preset: str | None, algorithm: str | None = None
) -> Config:
    named = [f"env.id={env_id}"] + ([f"algorithm.name={algorithm}"] if algorithm else [])
    return configure(loading.read_table(preset, settings=[*settings, *named]))


def _fit(name: str, presets: Sequence[str | None], tried: Tried) -> Fit:
    """The first preset with which an algorithm fits; else why it does not with the first."""
    refused = []
    for preset in presets:
        fit = _fit_with(name, preset, tried)
        if not fit.refusal:
            return fit
        refused.append(fit)
    return refused[0]


def _fit_with(name: str, preset: str | None, tried: Tried) -> Fit:
    """Try an algorithm with the settings that `apex run` would use."""
    try:
        config = _config(tried.env_id, tried.settings, preset, name)
        algorithm = make_algorithm(config.algorithm, tried.spec)
        try_algorithm(algorithm, tried.observation)
        estimate, machine = item_bytes(algorithm, tried.observation), hardware.this_machine()
        memory = Memory(machine.memory_bytes, machine.available_bytes)
        config = machine_fitting.limit_capacity(config, estimate, memory)
    except ApexError as error:
        return Fit(name, preset or "", str(error))
    return Fit(name, preset or "", "", estimate, config.replay.capacity)
