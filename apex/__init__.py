"""apex: a suite of daemons for distributed reinforcement learning on PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apex.evaluation.trained_policy import load_policy

from apex.deprecated_imports import install

__version__ = "0.1.0"
__all__ = ["__version__", "load_policy"]


def __getattr__(name: str) -> Any:
    """Import `load_policy` on first use: it imports torch, which takes seconds."""
    if name == "load_policy":
        from apex.evaluation.trained_policy import load_policy

        return load_policy
    raise AttributeError(f"module 'apex' has no attribute '{name}'")


install()
