"""Scalars of `info` that become curves: `success` and the names in `env.metrics`."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from apex.data.schema import Array
from apex.envs.vector import Infos, measured_names, reported

log = logging.getLogger("apex.envs")


class InfoMetrics:
    """Reads named scalars from the `info` of E environments.

    Args:
        names: names in `env.metrics`; `success` is read as well.
        num_envs: E.
        env_id: the environment's name in messages.
    """

    def __init__(self, names: Sequence[str], num_envs: int, env_id: str) -> None:
        self._names = measured_names(names)
        self._unseen = set(names)
        """Names of `env.metrics` that no step has had yet, until the warning about them."""
        self._num_envs = num_envs
        self._env_id = env_id

    def read(self, infos: Infos) -> dict[str, npt.NDArray[np.float64]]:
        """The scalars of one step, `[E] float64` by name: NaN where an environment has none."""
        found = {}
        for name in self._names:
            values = reported(infos, name)
            if values is not None and len(values) == self._num_envs:
                numbers = found[name] = np.array([_number(value) for value in values])
                if name in self._unseen and not np.isnan(numbers).all():
                    self._unseen.discard(name)
        return found

    def warn_of_missing(self, keys: Iterable[str]) -> None:
        """Warn once of the names of `env.metrics` that nothing has reported by an episode's end.

        Args:
            keys: the keys that `info` has then.
        """
        if self._unseen:
            log.warning(
                "%s: env.metrics: info had no number %s up to the end of an episode; its keys "
                "were: %s. Name one of these, or let the environment report it with the last step "
                "of each episode",
                self._env_id,
                " or ".join(f"'{name}'" for name in sorted(self._unseen)),
                ", ".join(sorted(key for key in keys if not key.startswith("_"))) or "none",
            )
            self._unseen.clear()


def _number(value: Any) -> float:
    """One finite number, or an array of one, as a float; NaN for anything else."""
    try:
        array: Array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):  # a ragged list, a tensor of a GPU
        return float("nan")
    if array.size != 1 or array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        return float("nan")
    return float(array.item())
