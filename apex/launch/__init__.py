"""Prepare a run and start its daemons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apex.launch.from_script import run

__all__ = ["run"]


def __getattr__(name: str) -> Any:
    """Import `run` when it is first asked for: every daemon's process imports this package."""
    if name == "run":
        from apex.launch.from_script import run

        return run
    raise AttributeError(f"module 'apex.launch' has no attribute '{name}'")
