"""Convert parsed TOML tables to typed structs; errors name the path of the key."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from apex.errors import ConfigError


def convert(raw: Mapping[str, Any], kind: type[msgspec.Struct], path: str = "") -> Any:
    """Turn a parsed TOML table into `kind`.

    Raises:
        ConfigError: an unknown key (with the closest known one), a wrong type or a number out of
            range; the message begins with the key's path.
    """
    _check_finite(raw, path)
    try:
        return msgspec.convert(raw, kind, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(str(error), kind, path, raw)) from None


def _check_finite(value: Any, path: str) -> None:
    """Raise `ConfigError` for infinity and NaN, as checkpoints hold the configuration as JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(
            f"{path}: expected a finite number, got {value}; write a large one, such as 1e30"
        )
    if isinstance(value, Mapping):
        for key, one in value.items():
            _check_finite(one, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for index, one in enumerate(value):
            _check_finite(one, f"{path}[{index}]")


def _explain(message: str, kind: type[msgspec.Struct], prefix: str, raw: Mapping[str, Any]) -> str:
    """Rewrite msgspec's message: the key's path first, what came, and a remedy."""
    reason, _, where = message.partition(" - at `$")
    path = ".".join(part for part in (prefix, where.rstrip("`").lstrip(".")) if part)
    unknown = re.search(r"unknown field `([^`]+)`", reason)
    if unknown is None:
        out_of_range = re.match(r"Expected `.* [<>]=? ", reason)
        came = f", got {_value_at(raw, where)!r}" if out_of_range else ""
        return f"{path or 'configuration'}: {reason}{came}"
    key = unknown.group(1)
    full = f"{path}.{key}" if path else key
    close = difflib.get_close_matches(key, _fields_at(kind, where), n=1)
    return f"{full}: unknown key" + (f"; did you mean '{close[0]}'?" if close else "")


def _value_at(raw: Any, where: str) -> Any:
    """The value at a path such as `.env.frame_size[1]`."""
    for key, index in re.findall(r"\.([^.\[\]`]+)|\[(\d+)\]", where):
        raw = raw[int(index)] if index else raw[key]
    return raw


def _fields_at(kind: type[msgspec.Struct], where: str) -> list[str]:
    section = where.rstrip("`").strip(".")
    for field in msgspec.structs.fields(kind):
        if field.name == section and isinstance(field.type, type):
            kind = field.type
    return [field.name for field in msgspec.structs.fields(kind)]
