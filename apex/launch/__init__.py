"""Prepare a run and start its daemons."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apex.launch.from_script import run
    from apex.launch.run_handle import Run

__all__ = ["Run", "run"]


def __getattr__(name: str) -> Any:
    """Import a name on first use, since every daemon's process imports this package."""
    if name == "run":
        from apex.launch.from_script import run

        return run
    if name == "Run":
        from apex.launch.run_handle import Run

        return Run
    raise AttributeError(f"module 'apex.launch' has no attribute '{name}'")
