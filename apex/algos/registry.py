"""Finds the algorithm that a configuration names and gives it its typed section."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import msgspec

from apex import plugins
from apex.algos.apex_dpg import ApexDPG
from apex.algos.apex_dqn import ApexDQN
from apex.algos.base import Algorithm
from apex.algos.impala import Impala
from apex.algos.r2d2 import R2D2
from apex.config.conversion import convert
from apex.data.schema import Schema
from apex.envs.spec import EnvSpec
from apex.errors import ConfigError, RunError
from apex.plugins import FACTORY

ALGORITHMS: dict[str, type[Algorithm]] = {
    "apex_dqn": ApexDQN,
    "apex_dpg": ApexDPG,
    "impala": Impala,
    "r2d2": R2D2,
}
ENTRY_POINTS = "apex.algorithms"
"""The group in which an installed package declares algorithms of its own."""


def algorithm_class(name: str) -> type[Algorithm]:
    """The algorithm of a name: apex's own, an installed package's, or `path/to/file.py:Class`.

    Raises:
        ConfigError: there is none, or it is no algorithm.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    if name.startswith(FACTORY):
        raise ConfigError(
            f"{name.removeprefix(FACTORY)} came from a script by apex.launch.run(algorithm=…) and "
            "is not kept; put it into a file and start the run with --algorithm file.py:Class"
        )
    installed = _installed()
    if name in installed:
        kind = _loaded(installed[name])
    elif plugins.is_reference(name):
        module, attribute = plugins.load(name, "algorithm.name")
        kind = getattr(module, attribute, None)
        if kind is None:
            raise ConfigError(f"algorithm.name = '{name}': there is no '{attribute}' in it")
    else:
        raise ConfigError(
            f"algorithm.name: no '{name}'; there are: {', '.join([*ALGORITHMS, *installed])}. "
            "One of your own is path/to/file.py:Class"
        )
    if not (isinstance(kind, type) and issubclass(kind, Algorithm)):
        raise ConfigError(
            f"algorithm.name = '{name}': expected a subclass of apex.api.Algorithm, got {kind!r}"
        )
    missing = sorted(getattr(kind, "__abstractmethods__", ()))
    if not _is_section(getattr(kind, "Config", None)):
        missing.append("Config (a subclass of apex.api.AlgorithmConfig)")
    if missing:
        raise ConfigError(
            f"algorithm.name = '{name}': {kind.__name__} lacks {', '.join(missing)}; see "
            "apex.api.Algorithm"
        )
    return kind


def _is_section(kind: object) -> bool:
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return False
    return any(field.name == "name" for field in msgspec.structs.fields(kind))


def _installed() -> dict[str, EntryPoint]:
    return {one.name: one for one in entry_points(group=ENTRY_POINTS)}


def _loaded(entry_point: EntryPoint) -> Any:
    try:
        return entry_point.load()
    except Exception as error:  # whatever the package's own code raises
        raise ConfigError(
            f"algorithm.name = '{entry_point.name}': loading {entry_point.value} "
            f"{plugins.describe_error(error)}"
        ) from error


def make_algorithm(
    section: Mapping[str, Any], spec: EnvSpec, kind: type[Algorithm] | None = None
) -> Algorithm:
    """The algorithm of an `[algorithm]` section.

    Args:
        section: raw; typed and checked here.
        spec: of the environment.
        kind: the class, where a script brought it.

    Raises:
        ConfigError: an unknown algorithm, key or type, or one that cannot learn the actions.
    """
    kind = kind or algorithm_class(section["name"])
    if spec.action_kind not in kind.action_kinds:
        able = [name for name, one in ALGORITHMS.items() if spec.action_kind in one.action_kinds]
        raise ConfigError(
            f"algorithm.name: {plugins.short(section['name'])} learns "
            f"{' or '.join(sorted(kind.action_kinds))} actions, {spec.env_id} takes "
            f"{spec.actions_text}; "
            + (f"algorithms for those: {', '.join(able)}" if able else "none of apex's own can")
        )
    try:
        config = convert(section, kind.Config, "algorithm")
    except ConfigError as error:
        raise ConfigError(f"{error} (of {plugins.short(section['name'])})") from None
    return kind(config, spec)


def check_schema(algorithm: Algorithm, schema: Schema) -> None:
    """Raise `RunError` unless the algorithm makes the items that the run's table holds."""
    if algorithm.schema() != schema:
        raise RunError(
            "the run's schema.json belongs to another configuration than its config.toml "
            "(n_step, frame size or frame stack were changed); start a new run"
        )
