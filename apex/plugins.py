"""Import a user's own environment or algorithm by reference: `my_file.py:Name`.

Both configuration keys that name code, `algorithm.name` and `env.id`, are resolved here. A
reference to a file is stored with its absolute path, so that every daemon of a run finds the same
file.
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

APEX = f"{Path(__file__).resolve().parent}/"
NOT_USER_CODE = tuple(
    f"{Path(folder).resolve()}/"
    for folder in (
        APEX,
        *(sysconfig.get_path(kind) for kind in ("stdlib", "purelib", "platlib")),
    )
)
"""Directories of code that the user cannot fix: apex, installed packages, the standard library."""


RAISED = (Exception, SystemExit)
"""What is a fault of the user's own code when it raises it. `sys.exit()` would end the process."""


def absolute(reference: str) -> str:
    """Make the path of a file in a reference absolute; return other references unchanged.

    `my_env:Corridor-v0` means the file `my_env.py` if the working directory has one.

    Raises:
        ConfigError: the reference names a file, but nothing in it.
    """
    module, colon, name = reference.rpartition(":")
    if reference.endswith(".py"):
        raise ConfigError(f"{reference}: expected FILE:NAME, such as {reference}:Name")
    if not colon or reference.startswith(FACTORY):
        return reference
    file = Path(module if module.endswith(".py") else f"{module}.py")
    if not module.endswith(".py") and not file.is_file():
        return reference
    return f"{file.resolve()}:{name}"


def with_absolute_paths(config: Config) -> Config:
    """Make the paths of a user's own files absolute, so that every daemon finds them."""
    algorithm = {**config.algorithm, "name": absolute(config.algorithm["name"])}
    env = msgspec.structs.replace(config.env, id=absolute(config.env.id))
    evaluator = config.evaluator
    if isinstance(other := evaluator.env.get("id"), str):
        changed = {**evaluator.env, "id": absolute(other)}
        evaluator = msgspec.structs.replace(evaluator, env=changed)
    return msgspec.structs.replace(config, algorithm=algorithm, env=env, evaluator=evaluator)


def is_reference(name: str) -> bool:
    """Whether a name says which module or file defines it."""
    return ":" in name


def short(reference: str) -> str:
    """Shorten a reference for messages: drop the directories of its file."""
    module, colon, name = reference.rpartition(":")
    return f"{Path(module).name if module.endswith('.py') else module}{colon}{name}"


def load(reference: str, key: str) -> tuple[ModuleType, str]:
    """Import the module or file of a reference; return it with the name to look up in it.

    Args:
        reference: `module:Name` or `path/to/file.py:Name`.
        key: the configuration key, for the error message.

    Raises:
        ConfigError: there is no such file or module, or importing it failed.
    """
    module, _, name = reference.rpartition(":")
    try:
        if not module.endswith(".py"):
            return importlib.import_module(module), name
        return _import_file(Path(module)), name
    except FileNotFoundError as error:
        remedy = f"if the file has moved, give its new path: --set {key}=path/to/file.py:{name}"
        raise ConfigError(f"{key} = '{reference}': {error}; {remedy}") from None
    except RAISED as error:
        raise ConfigError(f"{key} = '{reference}': importing it {describe_error(error)}") from error


def _import_file(file: Path) -> ModuleType:
    """Import a file under a module name made from its path, as two files may share a name.

    Its own imports are searched for in its directory first.
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


def describe_error(error: BaseException, remedy: str = "") -> str:
    """Describe an exception: type, message and the line of the user's own code.

    If something has called `sys.exit()`, its line is named whoever wrote it.

    Args:
        error: the exception, as caught.
        remedy: what to do if the traceback contains none of the user's code.
    """
    what = f"raised {type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not frame.filename.startswith(("<", *NOT_USER_CODE))]
    if isinstance(error, SystemExit):
        what = f"raised SystemExit({error.code!r}), which would end the process"
        own = own or [frame for frame in frames if not frame.filename.startswith(APEX)]
    if not own:
        return f"{what}; {remedy}" if remedy else what
    frame = own[-1]
    place = f"{Path(frame.filename).name}, line {frame.lineno}, in {frame.name}"
    return f"{what} ({place}); fix it there"


def called_exit(error: SystemExit) -> bool:
    """Whether other code than apex's own has called `sys.exit()`."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and not frames[-1].filename.startswith(APEX)


FACTORY = "factory:"
"""Prefix of the name of an environment or an algorithm that a script passed in."""


@dataclass(frozen=True)
class Extensions:
    """A script's own environment and algorithm, which replace those that a configuration names.

    Args:
        make_env: makes one environment; replaces `env.id`.
        algorithm: the class; replaces `algorithm.name`.
        pickled: both as of `pickle_extensions`, in a daemon that received them so.
    """

    make_env: Callable[..., Any] | None = None
    algorithm: type[Any] | None = None
    pickled: bytes = b""


NONE = Extensions()


def with_extensions(config: Config, extensions: Extensions) -> Config:
    """Write the names of a script's extensions into a configuration; the objects are not saved."""
    if extensions.make_env is not None:
        make_env = extensions.make_env
        env_id = FACTORY + getattr(make_env, "__name__", type(make_env).__name__)
        env = msgspec.structs.replace(config.env, id=env_id)
        config = msgspec.structs.replace(config, env=env)
    if extensions.algorithm is not None:
        section = {**config.algorithm, "name": FACTORY + extensions.algorithm.__name__}
        config = msgspec.structs.replace(config, algorithm=section)
    return config
