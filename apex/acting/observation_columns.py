"""Split observations into what items store: images as compressed frames, the rest as columns."""

from __future__ import annotations

import numpy as np

from apex.data import frame_compression
from apex.data.observations import ACTION_MASK, Observations, column_name, count
from apex.data.schema import Array, Arrays, Column, FramesColumn
from apex.envs.spec import EnvSpec

PARTS_RULE = "; choices that exist, and masks that allow the action taken"
"""Condition on the parts of an observation, to append to error messages."""


class ObservationColumns:
    """Splits observations into frames and columns.

    The images of one observation are one frame: a compressed block of each, in the order of the
    parts, so that they are stored, sent and stacked together.

    Args:
        spec: specification of the environments.
    """

    def __init__(self, spec: EnvSpec) -> None:
        self._images = [part.name for part in spec.images]
        self._arrays = {part.name: column_name(part.name) for part in spec.arrays}
        self.names = list(self._arrays.values())
        """The names of the columns."""

    def frames(self, observations: Observations) -> list[bytes]:
        """The compressed frame of each environment."""
        return [self.frame(observations, env) for env in range(count(observations))]

    def frame(self, observations: Observations, env: int) -> bytes:
        """The compressed frame of one environment."""
        if not isinstance(observations, dict):
            return frame_compression.compress(observations[env])
        return b"".join(
            frame_compression.compress(observations[name][env]) for name in self._images
        )

    def row(self, observations: Observations, env: int) -> tuple[Array, ...]:
        """A copy of the columns of one environment, in the order of `names`."""
        if not isinstance(observations, dict):
            return tuple(observations[env].copy() for _ in self.names)
        return tuple(np.array(observations[part][env]) for part in self._arrays)

    def columns(self, observations: Observations) -> Arrays:
        """The columns, `[E, ...]` each."""
        if not isinstance(observations, dict):
            return dict.fromkeys(self.names, observations)
        return {name: observations[part] for part, name in self._arrays.items()}


def observation_schema(spec: EnvSpec, rows: tuple[int, ...] = ()) -> list[Column]:
    """The columns of an observation, whose shapes begin with `rows`."""
    return [
        Column(column_name(part.name), part.dtype, (*rows, *part.shape)) for part in spec.arrays
    ]


def frames_schema(spec: EnvSpec, most: int) -> FramesColumn | None:
    """The frames of an item with at most `most` of them; None without images."""
    images = spec.images
    if not images:
        return None
    if not spec.parts:
        return FramesColumn(spec.observation_shape, most)
    columns = tuple(Column(part.name, part.dtype, part.shape) for part in images)
    return FramesColumn.of_images(columns, most)


def invalid_observations(spec: EnvSpec, columns: Arrays, prefix: str = "") -> Array:
    """Which observations in the columns of items have an invalid part, `[...] bool`.

    Args:
        spec: specification of the environments.
        columns: the columns of the items; a part's is `[..., *shape]`.
        prefix: of the names of the columns.
    """
    parts = [part for part in spec.arrays if part.kind in ("choices", "mask")]
    wrong = [part.invalid(columns[prefix + column_name(part.name)]) for part in parts]
    return np.logical_or.reduce(wrong) if wrong else np.zeros((), np.bool_)


def forbidden_actions(spec: EnvSpec, columns: Arrays) -> Array:
    """Which actions in the columns of items are forbidden by their mask, `[...] bool`."""
    if not spec.has_action_mask:
        return np.zeros((), np.bool_)
    actions = np.clip(columns["action"], 0, spec.num_actions - 1)
    taken = np.take_along_axis(columns[column_name(ACTION_MASK)], actions[..., None], axis=-1)
    forbidden: Array = taken[..., 0] == 0
    return forbidden
