"""A user's own parts of a suite, as they reach the daemons that need them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # torch and gymnasium are imported by those who use an extension
    from apex.algos.base import Algorithm
    from apex.envs.registry import EnvFactory


@dataclass(frozen=True)
class Extensions:
    """What replaces the parts that a configuration can only name.

    Args:
        make_env: makes one environment, instead of `env.id`.
        algorithm: the class, instead of `algorithm.name`.
    """

    make_env: EnvFactory | None = None
    algorithm: type[Algorithm] | None = None


NONE = Extensions()
