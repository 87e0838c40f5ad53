"""Observations of E environments: one array, or several by name.

A plain observation is one array `[E, ...]`. An observation of several parts, such as that of a
Dict space, is a dictionary of such arrays; its keys are the names of the parts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias, TypeVar

import numpy as np

from apex.data.schema import Array, Arrays

Observations: TypeAlias = Array | Arrays
A = TypeVar("A")
B = TypeVar("B")

OBSERVATION = "observation"
"""Name of the column of a plain observation, and prefix of those of its parts."""
ACTION_MASK = "action_mask"
"""Name of the part that says which actions are allowed, `[E, num_actions] uint8`: 1 or 0."""


def column_name(part: str) -> str:
    """The column of a part of the observation; an empty name is a plain observation's."""
    return f"{OBSERVATION}.{part}" if part else OBSERVATION


def map_arrays(function: Callable[[A], B], observations: A | dict[str, A]) -> B | dict[str, B]:
    """Apply a function to each array, or to each tensor of observations on a device."""
    if isinstance(observations, dict):
        return {name: function(array) for name, array in observations.items()}
    return function(observations)


def count(observations: Observations) -> int:
    """E, the number of environments."""
    if isinstance(observations, dict):
        return len(next(iter(observations.values())))
    return len(observations)


def concatenate(parts: Sequence[Observations]) -> Observations:
    """Concatenate the observations of several groups of environments, as a copy."""
    first = parts[0]
    if isinstance(first, dict):
        return {name: np.concatenate([part[name] for part in parts]) for name in first}
    return np.concatenate(parts)  # type: ignore[arg-type]


def to_columns(observations: Observations) -> Arrays:
    """The arrays by column name."""
    if isinstance(observations, dict):
        return {column_name(name): array for name, array in observations.items()}
    return {OBSERVATION: observations}


def from_columns(columns: Mapping[str, Array], names: Sequence[str]) -> Observations:
    """The observations of the parts `names`; no names: of the plain column."""
    if not names:
        return columns[OBSERVATION]
    return {name: columns[column_name(name)] for name in names}


def action_mask(observations: A | dict[str, A]) -> A | None:
    """The mask of the allowed actions, `[E, num_actions] uint8`; None: all are allowed.

    Args:
        observations: arrays, or tensors on a device.
    """
    return observations.get(ACTION_MASK) if isinstance(observations, dict) else None
