"""Old import names of apex 0.1: each still works, with a warning that gives the new name.

Code outside apex should import from `apex.api`. Remove this file and its uses in version 0.3.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

MODULES = {
    "apex.acting.accumulators": ("apex.acting.accumulator", "apex.acting.transition_accumulator"),
    "apex.acting.sequences": ("apex.acting.sequence_accumulator",),
    "apex.algos.agents": ("apex.algos.agent_factory",),
    "apex.algos.sequences": ("apex.algos.sequence_batches",),
    "apex.algos.transitions": ("apex.algos.transition_batches",),
    "apex.checkpoint": ("apex.runs.checkpoint",),
    "apex.curves": ("apex.evaluation.curves",),
    "apex.endpoints": ("apex.wire.endpoints", "apex.host.paths"),
    "apex.engine": ("apex.launch.engine", "apex.runs.engine_record"),
    "apex.env_spec": ("apex.envs.spec",),
    "apex.extensions": ("apex.plugins",),
    "apex.film": ("apex.evaluation.film",),
    "apex.frames": ("apex.data.frame_compression",),
    "apex.networks.cores": ("apex.networks.recurrent_cores",),
    "apex.ops.optimizers": ("apex.ops.rmsprop",),
    "apex.ops.q_learning": ("apex.ops.double_q_learning",),
    "apex.params": ("apex.networks.parameters",),
    "apex.prepare": ("apex.launch.prepare",),
    "apex.run_directory": ("apex.runs.directory",),
    "apex.serial": ("apex.launch.single_process",),
    "apex.trained_policy": ("apex.evaluation.trained_policy",),
    "apex.types": ("apex.data.schema", "apex.data.chunks", "apex.envs.spec", "apex.plugins"),
    "apex.user_code": ("apex.plugins",),
    "apex.wire.keys": ("apex.wire.curve_keys",),
}
"""Removed modules, and the modules that have their contents now."""
PACKAGES = {
    "apex.config": ("apex.config.sections", "apex.config.loading"),
    "apex.acting.agent": ("apex.acting.decisions", "apex.acting.frame_stack"),
    "apex.algos.q_learning": ("apex.algos.deprecated_interface",),
}
"""Remaining modules, and the modules that some of their names moved to."""
RENAMED = {
    "ApexDPGConfig": "ApexDPG.Config",
    "ApexDQNConfig": "ApexDQN.Config",
    "ImpalaConfig": "Impala.Config",
    "OptimizerSection": "OptimizerConfig",
    "R2D2Config": "R2D2.Config",
    "SequenceSection": "SequenceAlgorithm.Config",
    "TransitionSection": "TransitionAlgorithm.Config",
}


def deprecated_names(module: str) -> Callable[[str], Any]:
    """Make a module's `__getattr__` that finds moved names and warns.

    Args:
        module: the module's `__name__`.
    """

    def find(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        outer, _, inner = RENAMED.get(name, name).partition(".")
        for place in MODULES.get(module) or (module, *PACKAGES.get(module, ())):
            found = vars(import_module(place)).get(outer)
            if found is not None:
                _warn(f"{module}.{name}", place, RENAMED.get(name, name))
                return getattr(found, inner) if inner else found
        raise AttributeError(f"module '{module}' has no attribute '{name}'")

    return find


def _warn(old: str, place: str, name: str) -> None:
    api = import_module("apex.api")
    public = name.partition(".")[0] in api.__all__
    new = f"apex.api.{name}" if public else f"{place}.{name}"
    warnings.warn(f"{old} is now {new}; the old name will be removed in apex 0.3", FutureWarning, 3)


class _MovedModule(Loader):
    """Loads a module that is empty but for a `__getattr__` which finds the moved names."""

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return ModuleType(spec.name, "Moved; see apex.deprecated_imports.")

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__getattr__"] = deprecated_names(module.__name__)


class _MovedModules(MetaPathFinder):
    """Finds the removed modules of apex 0.1 by their old names."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, _MovedModule()) if name in MODULES else None


def install() -> None:
    """Let removed modules be imported by their old names."""
    sys.meta_path.append(_MovedModules())
