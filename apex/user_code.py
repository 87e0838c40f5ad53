"""A user's own files: `my_algorithm.py:Munchausen` and `my_env:Corridor-v0` by name.

Both configuration keys that name code, `algorithm.name` and `env.id`, are read here. A reference
to a file is kept with its absolute path, so that every daemon of a run finds the same one.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

from apex.errors import ConfigError


def absolute(reference: str) -> str:
    """A reference with the path of its file, where it names one from here; others as they are.

    `my_env:Corridor-v0` names the file `my_env.py` where that lies in the working directory.
    """
    module, colon, name = reference.rpartition(":")
    if not colon:
        return reference
    file = Path(module if module.endswith(".py") else f"{module}.py")
    if not module.endswith(".py") and not file.is_file():
        return reference
    return f"{file.resolve()}:{name}"


def is_reference(name: str) -> bool:
    """Whether a name says in which module or file something lies."""
    return ":" in name


def short(reference: str) -> str:
    """A reference for people to read: without the directories of its file."""
    module, colon, name = reference.rpartition(":")
    return f"{Path(module).name if module.endswith('.py') else module}{colon}{name}"


def load(reference: str, key: str) -> tuple[ModuleType, str]:
    """Import the module or file of a reference, and give the name that is meant in it.

    The file's directory is where its own imports are looked for, too.

    Args:
        reference: `module:Name` or `path/to/file.py:Name`.
        key: of the configuration, for the error.

    Raises:
        ConfigError: there is no such file or module, or importing it failed.
    """
    module, _, name = reference.rpartition(":")
    try:
        return _import_file(Path(module)) if module.endswith(".py") else _import(module), name
    except ConfigError as error:
        raise ConfigError(f"{key} = '{reference}': {error}") from None


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the user's own code raises
        raise ConfigError(
            f"importing {name} raised {type(error).__name__}: {error}; name a file "
            "(path/to/file.py:Name), or a module that Python finds"
        ) from error


def _import_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise ConfigError(f"{file}: no such file")
    folder = str(file.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    module = _import(file.stem)
    if Path(module.__file__ or "").resolve() != file.resolve():
        raise ConfigError(
            f"there is another module '{file.stem}' ({module.__file__ or 'built in'}): rename "
            f"{file.name}"
        )
    return module
