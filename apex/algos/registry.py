"""Find the algorithm that a configuration names, and make it with its typed section."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import msgspec

from apex import plugins
from apex.acting.normalization import Normalization
from apex.algos.apex_dpg import ApexDPG
from apex.algos.apex_dqn import ApexDQN
from apex.algos.base import Algorithm
from apex.algos.impala import Impala
from apex.algos.normalization import normalization_discount, normalized
from apex.algos.r2d2 import R2D2
from apex.config.conversion import convert
from apex.config.sections import EnvConfig
from apex.data.schema import Schema
from apex.envs.spec import EnvSpec
from apex.errors import ApexError, ConfigError, RunError
from apex.plugins import FACTORY

ALGORITHMS: dict[str, type[Algorithm]] = {
    "apex_dqn": ApexDQN,
    "apex_dpg": ApexDPG,
    "impala": Impala,
    "r2d2": R2D2,
}
ENTRY_POINTS = "apex.algorithms"
"""Entry point group in which an installed package declares its algorithms."""


def algorithm_class(name: str) -> type[Algorithm]:
    """The class that `algorithm.name` refers to.

    Args:
        name: a built-in algorithm, an installed package's, or `path/to/file.py:Class`.

    Raises:
        ConfigError: no class has this name, or it is not a valid algorithm.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    if name.startswith(FACTORY):
        raise ConfigError(
            f"{name.removeprefix(FACTORY)} came from a script by apex.launch.run(algorithm=…), "
            "which the run does not store. Put the class into a file and start the run with "
            "--algorithm file.py:Class"
        )
    installed = _installed()
    if name in installed:
        kind = _load(installed[name])
    elif plugins.is_reference(name):
        module, attribute = plugins.load(name, "algorithm.name")
        kind = getattr(module, attribute, None)
        if kind is None:
            raise ConfigError(f"algorithm.name = '{name}': it defines no class '{attribute}'")
    else:
        raise ConfigError(
            f"algorithm.name: unknown algorithm '{name}'; expected one of "
            f"{', '.join([*ALGORITHMS, *installed])}, or path/to/file.py:Class for your own"
        )
    if not (isinstance(kind, type) and issubclass(kind, Algorithm)):
        raise ConfigError(
            f"algorithm.name = '{name}': expected a subclass of apex.api.Algorithm, got {kind!r}"
        )
    missing = kind.undefined()
    if not _is_section(getattr(kind, "Config", None)):
        missing.append("Config (a subclass of apex.api.AlgorithmConfig)")
    if missing:
        raise ConfigError(
            f"algorithm.name = '{name}': {kind.__name__} must define {', '.join(missing)}; see "
            "apex.api.Algorithm"
        )
    return kind


def _is_section(kind: object) -> bool:
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return False
    return any(field.name == "name" for field in msgspec.structs.fields(kind))


def _installed() -> dict[str, EntryPoint]:
    return {entry_point.name: entry_point for entry_point in entry_points(group=ENTRY_POINTS)}


def _load(entry_point: EntryPoint) -> Any:
    try:
        return entry_point.load()
    except plugins.RAISED as error:
        raise ConfigError(
            f"algorithm.name = '{entry_point.name}': loading {entry_point.value} "
            f"{plugins.describe_error(error)}"
        ) from error


def make_algorithm(
    section: Mapping[str, Any],
    spec: EnvSpec,
    kind: type[Algorithm] | None = None,
    *,
    env: EnvConfig | None = None,
) -> Algorithm:
    """Make the algorithm of an `[algorithm]` section.

    Args:
        section: the section as plain values; it is converted and validated here.
        spec: specification of the environment.
        kind: the algorithm's class, if a script supplied it; None: look up `section["name"]`.
        env: says what to normalise; None: nothing.

    Raises:
        ConfigError: the algorithm or a key is unknown, a value has the wrong type, or the
            algorithm does not support the environment's actions, or there is nothing to normalise.
    """
    kind = kind or algorithm_class(section["name"])
    if spec.action_kind not in kind.action_kinds:
        able = [name for name, cls in ALGORITHMS.items() if spec.action_kind in cls.action_kinds]
        raise ConfigError(
            f"algorithm.name: {plugins.short(section['name'])} supports "
            f"{' or '.join(sorted(kind.action_kinds))} actions, but {spec.env_id} takes "
            f"{spec.actions_text}; "
            + (f"supported by: {', '.join(able)}" if able else "no algorithm of apex does")
        )
    try:
        config = convert(section, kind.Config, "algorithm")
    except ConfigError as error:
        raise ConfigError(f"{error} (algorithm {plugins.short(section['name'])})") from None
    normalization = None
    if env is not None:
        normalization = Normalization.of(env, spec, normalization_discount(config))
    try:
        return (kind if normalization is None else normalized(kind, normalization))(config, spec)
    except ApexError:
        raise
    except plugins.RAISED as error:
        name = plugins.short(section["name"])
        raise ConfigError(
            f"algorithm '{name}' on {spec.env_id}: making it {plugins.describe_error(error)}"
        ) from error


def check_schema(algorithm: Algorithm, schema: Schema) -> None:
    """Raise `RunError` unless the algorithm's items have the schema of the run's table."""
    if algorithm.schema() != schema:
        raise RunError(
            "the run's schema.json does not match its config.toml (for example, n_step, the "
            "frame size or the frame stack was changed); start a new run"
        )
