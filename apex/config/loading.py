"""Read a preset or a TOML file with `--set` settings into a checked `Config`.

The steps: `read_table` reads what the user wrote, `apply_overlay` adds the part for this machine,
`parse` types and checks the result. The steps after that are in `apex/launch/prepare.py`.
"""

from __future__ import annotations

import sys
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import tomli_w

from apex.config.conversion import convert
from apex.config.sections import Config, check
from apex.errors import ConfigError, UsageError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


OVERLAYS = ("cpu", "gpu")
"""Tables that override the rest: `gpu` where torch can use a GPU, `cpu` elsewhere."""
DEFAULT_ALGORITHM = "apex_dqn"


class Table(NamedTuple):
    """A configuration as the user wrote it: overlays not applied, values not typed."""

    written: dict[str, Any]
    """From a preset or a file, with the overlays for both kinds of machine."""
    settings: dict[str, Any]
    """From `--set`; they override `written`."""
    name: str = ""
    """Name for its runs: the preset's or the file's; empty if settings name the environment."""
    preset: str = ""
    """Name of the preset, if one was read."""


def read_table(
    preset: str | None = None, file: Path | None = None, settings: Iterable[str] = ()
) -> Table:
    """Read a preset, a file, or the defaults for an environment.

    Args:
        preset: name of a preset.
        file: a TOML file, instead of a preset.
        settings: `section.key=value`, as of `--set`.

    Raises:
        ConfigError: an unknown preset, an unreadable file, or a setting without `=` or section.
        UsageError: both a preset and a file, or neither of them and no environment.
    """
    given = override({}, settings)
    own_environment = "id" in given.get("env", {})
    if preset is not None and file is not None:
        raise UsageError("expected --preset NAME or --config FILE, not both")
    if preset is not None:
        return Table(preset_table(preset), given, "" if own_environment else preset, preset)
    if file is not None:
        return Table(read_toml(file), given, "" if own_environment else file.stem)
    if not own_environment:
        raise UsageError("expected --preset NAME, --config FILE or --env ID (or --resume)")
    return Table({"algorithm": {"name": DEFAULT_ALGORITHM}}, given)


def apply_overlay(table: Table, *, gpu: bool) -> dict[str, Any]:
    """Override a table with its part for this machine, and both with the settings.

    Args:
        table: as the user wrote it.
        gpu: whether torch can use a GPU; the part `gpu` is not used if `learner.device` is cpu.

    Raises:
        ConfigError: the part for this machine is not a table.
    """
    whole = merge(table.written, table.settings)
    learner = whole.get("learner")
    on_cpu = isinstance(learner, Mapping) and learner.get("device") == "cpu"
    name = "gpu" if gpu and not on_cpu else "cpu"
    part = whole.get(name, {})
    if not isinstance(part, Mapping):
        raise ConfigError(f"{name}: expected a table of sections, got {part!r}")
    rest = {key: value for key, value in whole.items() if key not in OVERLAYS}
    return merge(merge(rest, part), table.settings)


def parse(raw: Mapping[str, Any]) -> Config:
    """Turn the table of `apply_overlay` into a checked `Config`. Raises `ConfigError`."""
    config: Config = convert(raw, Config)
    check(config)
    return config


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file; a byte order mark, which some editors write first, is skipped.

    Raises:
        ConfigError: the file cannot be read; names the file and the line.
    """
    try:
        parsed: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        is_utf_16 = error.object[:2] in (BOM_UTF16_BE, BOM_UTF16_LE)
        found = "UTF-16" if is_utf_16 else f"another encoding ({error})"
        raise ConfigError(f"{path}: expected UTF-8, got {found}; save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}") from None
    return parsed


def load(path: Path) -> Config:
    """Read a resolved configuration file. Raises `ConfigError`."""
    with name_in_errors(path):
        return parse(read_toml(path))


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Put the file's name into a `ConfigError` about its contents."""
    try:
        yield
    except ConfigError as error:
        message = str(error)
        raise ConfigError(message if str(path) in message else f"{path}: {message}") from None


def dump(config: Config) -> str:
    """The configuration as TOML."""
    return tomli_w.dumps(_without_none(msgspec.to_builtins(config)))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def preset_names() -> list[str]:
    """Names of the presets that ship with apex."""
    folder = resources.files("apex") / "presets"
    return sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".toml"))


def preset_text(name: str) -> str:
    """The TOML source of a preset. Raises `ConfigError` that lists all presets."""
    if name not in preset_names():
        raise ConfigError(f"no preset '{name}'; there are: {', '.join(preset_names())}")
    return (resources.files("apex") / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def preset_table(name: str) -> dict[str, Any]:
    """A preset as a raw table, with the overlays for both kinds of machine."""
    table: dict[str, Any] = tomllib.loads(preset_text(name))
    return table


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Merge table `over` into `base`, recursively; values of `over` win."""
    result = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


def override(raw: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Apply `section.key=value` settings; a value that is not TOML is a plain string.

    Raises:
        ConfigError: a setting that has no `=` or no section.
    """
    result = dict(raw)
    for setting in settings:
        path, equals, text = setting.partition("=")
        keys = path.strip().split(".")
        if not equals or len(keys) < 2 or not all(keys):
            raise ConfigError(f"--set {setting}: expected section.key=value")
        try:
            value = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            value = text
        for key in reversed(keys):
            value = {key: value}
        result = merge(result, value)
    return result
