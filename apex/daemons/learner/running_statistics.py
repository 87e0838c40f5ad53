"""Statistics for normalisation, merged by the learner from the reports of all actors."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch

from apex.algos.base import Learner
from apex.config.sections import EnvConfig
from apex.errors import ConfigError
from apex.ops.moments import Moments

MAX_MEMBERS = 10_000
"""Members whose last report is remembered; beyond it the one that reported first is forgotten."""
SETTINGS = ("normalize_observations", "normalize_rewards")


class RunningStatistics:
    """Moments by key, each report counted once. Thread-safe.

    Args:
        sizes: numbers of each statistic, by its key.
        max_members: most members whose last report is remembered.
    """

    def __init__(self, sizes: Mapping[str, int], max_members: int = MAX_MEMBERS) -> None:
        self.sizes = dict(sizes)
        self._moments = {key: Moments.none(size) for key, size in sizes.items()}
        self._counted: dict[str, tuple[int, int]] = {}
        """Epoch and number of the last report that was counted, by member."""
        self._max_members = max_members
        self._lock = threading.Lock()
        self._version = self._written = 0
        """Number of changes so far, and how many of them the network's buffers have."""

    def count(self, member: str, epoch: int, seq: int, moments: Mapping[str, Moments]) -> bool:
        """Merge a member's report, unless it or a later one was counted before.

        Args:
            member: the sender, as `Hello.member`.
            epoch: the sender's start.
            seq: number of the report; a member's numbers increase within an epoch.
            moments: by key, valid and of the right size; keys may be missing.

        Returns:
            Whether it was merged.
        """
        with self._lock:
            if (epoch, seq) <= self._counted.get(member, (-1, -1)):
                return False
            self._counted.pop(member, None)
            self._counted[member] = (epoch, seq)
            if len(self._counted) > self._max_members:
                del self._counted[next(iter(self._counted))]
            self._merge(moments)
            return True

    def merge(self, moments: Mapping[str, Moments]) -> None:
        """Merge moments that were collected in this process."""
        with self._lock:
            self._merge(moments)

    def _merge(self, moments: Mapping[str, Moments]) -> None:
        for key, more in moments.items():
            self._moments[key] = self._moments[key].merged(more)
            self._version += 1

    def newest(self) -> dict[str, Moments]:
        """The moments by key."""
        with self._lock:
            return dict(self._moments)

    def write_to(self, learner: Learner) -> bool:
        """Write changes since the last call into the network's buffers, between two updates.

        Returns:
            Whether there were any.
        """
        with self._lock:
            if self._version == self._written or learner.normalizer is None:
                return False
            self._written, moments = self._version, dict(self._moments)
        learner.normalizer.write(learner.network, moments)
        return True

    def write_again(self) -> None:
        """Let the next `write_to` write, after a checkpoint was loaded into the network."""
        with self._lock:
            self._version += 1

    def begin_with(self, moments: Mapping[str, Moments]) -> None:
        """Replace all by moments of another run, whose parameters this run begins with."""
        with self._lock:
            self._moments = dict(moments)
            self._version += 1

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint, as tensors and plain values."""
        with self._lock:
            return {
                "moments": {
                    key: {
                        "count": moments.count,
                        "mean": torch.from_numpy(moments.mean.copy()),
                        "m2": torch.from_numpy(moments.m2.copy()),
                    }
                    for key, moments in self._moments.items()
                },
                "counted": dict(self._counted),
            }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, in place of everything counted so far."""
        with self._lock:
            self._moments = {
                key: Moments(saved["count"], saved["mean"].numpy(), saved["m2"].numpy())
                for key, saved in state["moments"].items()
            }
            self._counted = {name: (last[0], last[1]) for name, last in state["counted"].items()}
            self._version += 1


def check_unchanged(env: EnvConfig, other: Mapping[str, Any], source: str) -> None:
    """Raise `ConfigError` unless parameters were trained with the same normalisation.

    Args:
        env: the run's section, which the parameters are to be used with.
        other: the `[env]` section that they were trained with, as plain values.
        source: what the parameters are, for the error.
    """
    for name in SETTINGS:
        trained = other.get(name, False)
        if getattr(env, name) != trained:
            raise ConfigError(
                f"env.{name}: {source} was trained with {str(trained).lower()}, and its network "
                f"expects such inputs; set it to {str(trained).lower()}, or start a new run "
                "from random parameters"
            )
