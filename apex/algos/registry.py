"""Finds the algorithm that a configuration names and gives it its typed section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apex.algos.apex_dpg import ApexDPG
from apex.algos.apex_dqn import ApexDQN
from apex.algos.base import Algorithm
from apex.algos.impala import Impala
from apex.algos.r2d2 import R2D2
from apex.config import convert
from apex.errors import ConfigError, RunError
from apex.types import EnvSpec, Schema

ALGORITHMS: dict[str, type[Algorithm]] = {
    "apex_dqn": ApexDQN,
    "apex_dpg": ApexDPG,
    "impala": Impala,
    "r2d2": R2D2,
}


def make_algorithm(
    section: Mapping[str, Any], spec: EnvSpec, kind: type[Algorithm] | None = None
) -> Algorithm:
    """The algorithm of an `[algorithm]` section.

    Args:
        section: raw; typed and checked here.
        spec: of the environment.
        kind: the class, where it is not one of apex's own.

    Raises:
        ConfigError: an unknown algorithm, key or type.
    """
    if kind is None:
        kind = ALGORITHMS.get(section["name"])
    if kind is None:
        raise ConfigError(
            f"algorithm.name: no '{section['name']}'; there are: {', '.join(ALGORITHMS)}"
        )
    if spec.action_kind not in kind.action_kinds:
        able = [name for name, one in ALGORITHMS.items() if spec.action_kind in one.action_kinds]
        raise ConfigError(
            f"algorithm.name: {section['name']} learns {' or '.join(sorted(kind.action_kinds))} "
            f"actions, {spec.env_id} has {spec.actions_text}; "
            + (f"algorithms for those: {', '.join(able)}" if able else "none of apex's own can")
        )
    return kind(convert(section, kind.Config, "algorithm"), spec)


def check_schema(algorithm: Algorithm, schema: Schema) -> None:
    """Raise `RunError` unless the algorithm makes the items that the run's table holds."""
    if algorithm.schema() != schema:
        raise RunError(
            "the run's schema.json belongs to another configuration than its config.toml "
            "(n_step, frame size or frame stack were changed); start a new run"
        )
