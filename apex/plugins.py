"""Import a user's own environment or algorithm by reference: `my_file.py:Name`.

Both configuration keys that name code, `algorithm.name` and `env.id`, are read here. A reference
to a file is kept with its absolute path, so that every daemon of a run finds the same one.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from apex.config.sections import Config
from apex.errors import ConfigError

NOT_THE_USERS = tuple(
    f"{Path(folder).resolve()}/"
    for folder in (
        str(Path(__file__).parent),
        *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")),
    )
)
"""Where code lies that a user cannot mend: apex, installed packages, Python's own."""


def absolute(reference: str) -> str:
    """A reference with the path of its file, where it names one from here; others as they are.

    `my_env:Corridor-v0` names the file `my_env.py` where that lies in the working directory.

    Raises:
        ConfigError: a file, but nothing in it.
    """
    module, colon, name = reference.rpartition(":")
    if reference.endswith(".py"):
        raise ConfigError(f"{reference}: say what is meant in that file: {reference}:Name")
    if not colon or reference.startswith(FACTORY):
        return reference
    file = Path(module if module.endswith(".py") else f"{module}.py")
    if not module.endswith(".py") and not file.is_file():
        return reference
    return f"{file.resolve()}:{name}"


def with_absolute_paths(config: Config) -> Config:
    """What names a user's own file names it for every daemon, wherever that runs."""
    algorithm = {**config.algorithm, "name": absolute(config.algorithm["name"])}
    env = msgspec.structs.replace(config.env, id=absolute(config.env.id))
    return msgspec.structs.replace(config, algorithm=algorithm, env=env)


def is_reference(name: str) -> bool:
    """Whether a name says in which module or file something lies."""
    return ":" in name


def short(reference: str) -> str:
    """A reference for people to read: without the directories of its file."""
    module, colon, name = reference.rpartition(":")
    return f"{Path(module).name if module.endswith('.py') else module}{colon}{name}"


def load(reference: str, key: str) -> tuple[ModuleType, str]:
    """Import the module or file of a reference, and give the name that is meant in it.

    Args:
        reference: `module:Name` or `path/to/file.py:Name`.
        key: of the configuration, for the error.

    Raises:
        ConfigError: there is no such file or module, or importing it failed.
    """
    module, _, name = reference.rpartition(":")
    try:
        if not module.endswith(".py"):
            return importlib.import_module(module), name
        return _import_file(Path(module)), name
    except FileNotFoundError as error:
        remedy = f"if it lies elsewhere now, say so: --set {key}=path/to/file.py:{name}"
        raise ConfigError(f"{key} = '{reference}': {error}; {remedy}") from None
    except Exception as error:  # whatever the user's own code raises
        raise ConfigError(f"{key} = '{reference}': importing it {told(error)}") from error


def _import_file(file: Path) -> ModuleType:
    """A file as a module of a name of its own: others may have a file called the same.

    What it imports is looked for beside it first.
    """
    file = file.resolve()
    if not file.is_file():
        raise FileNotFoundError("there is no such file")
    name = f"{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    folder = str(file.parent)
    sys.path[:] = [folder, *(path for path in sys.path if path != folder)]
    spec = spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def told(error: Exception, otherwise: str = "") -> str:
    """What was raised, and where in the user's own code.

    Args:
        error: as it was caught.
        otherwise: the remedy where none of the user's code is on the way to it.
    """
    what = f"raised {type(error).__name__}: {error}"
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(("<", *NOT_THE_USERS))
    ]
    if not own:
        return f"{what}; {otherwise}" if otherwise else what
    frame = own[-1]
    place = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
    return f"{what} ({place}); fix it there"


FACTORY = "factory:"
"""Begins the name of an environment or an algorithm that came from a script."""


@dataclass(frozen=True)
class Extensions:
    """What replaces the parts that a configuration can only name.

    Args:
        make_env: makes one environment, instead of `env.id`.
        algorithm: the class, instead of `algorithm.name`.
    """

    make_env: Callable[..., Any] | None = None
    algorithm: type[Any] | None = None


NONE = Extensions()


def with_extensions(config: Config, extensions: Extensions) -> Config:
    """Name the parts that a script brought in a configuration: they are not kept."""
    if extensions.make_env is not None:
        make_env = extensions.make_env
        env_id = FACTORY + getattr(make_env, "__name__", type(make_env).__name__)
        env = msgspec.structs.replace(config.env, id=env_id)
        config = msgspec.structs.replace(config, env=env)
    if extensions.algorithm is not None:
        section = {**config.algorithm, "name": FACTORY + extensions.algorithm.__name__}
        config = msgspec.structs.replace(config, algorithm=section)
    return config
