"""Read a configuration: TOML files, presets, and `--set` overrides."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec
import tomli_w

from apex.config.conversion import convert
from apex.config.sections import Config, check
from apex.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


OVERLAYS = ("cpu", "gpu")
"""Tables whose contents are laid over the rest on a machine without or with a GPU."""


def parse(raw: Mapping[str, Any]) -> Config:
    """Turn a parsed TOML document into a checked `Config`. Raises `ConfigError`."""
    config: Config = convert(raw, Config)
    check(config)
    return config


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises `ConfigError` naming the file and the line."""
    try:
        parsed: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return parsed


def load(path: Path) -> Config:
    """Read a resolved configuration file. Raises `ConfigError`."""
    try:
        return parse(read_toml(path))
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
    """The TOML source of a preset. Raises `ConfigError` naming those there are."""
    if name not in preset_names():
        raise ConfigError(f"no preset '{name}'; there are: {', '.join(preset_names())}")
    return (resources.files("apex") / "presets" / f"{name}.toml").read_text(encoding="utf-8")


def preset_table(name: str) -> dict[str, Any]:
    """A preset as a raw table, the parts for both kinds of machine included."""
    table: dict[str, Any] = tomllib.loads(preset_text(name))
    return table


def overlaid(raw: Mapping[str, Any], *, gpu: bool) -> dict[str, Any]:
    """A raw table with its part for a machine with or without a GPU laid over the rest."""
    rest = {key: value for key, value in raw.items() if key not in OVERLAYS}
    return merge(rest, raw.get("gpu" if gpu else "cpu", {}))


def preset(name: str, *, gpu: bool) -> dict[str, Any]:
    """A preset as a raw table, for a machine with or without a GPU."""
    return overlaid(preset_table(name), gpu=gpu)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay table `over` over `base`, table by table."""
    result = dict(base)
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(result.get(key), Mapping):
            result[key] = merge(result[key], value)
        else:
            result[key] = value
    return result


def override(raw: Mapping[str, Any], settings: Iterable[str]) -> dict[str, Any]:
    """Apply `section.key=value` settings; a value is TOML, or else a plain string.

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
