"""Generate the page of configuration keys and presets from the config structs and the presets."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
from msgspec import inspect as types

from apex.algos.registry import ALGORITHMS
from apex.config import loading
from apex.config.loading import OVERLAYS
from apex.config.sections import Config
from sitegen.documentation import attribute_docs
from sitegen.markdown import table

INTRODUCTION = """# Configuration

Every key, its type, default and meaning, from the structs that check a configuration. Settings are
applied in this order:

1. the preset (`--preset NAME`) or file (`--config FILE`), in TOML
2. its part for this machine, `[gpu.SECTION]` or `[cpu.SECTION]`
3. `--set SECTION.KEY=VALUE` and the other options of `apex run`
4. `actor.count = 0` is replaced, and `replay.capacity` lowered if the memory is too small

The result is `config.toml` in the run's directory. `apex config check FILE` checks a configuration:
an unknown key, a wrong type or a value out of bounds is refused by name.
`apex presets show NAME --resolved` prints all keys as this machine would run the preset.
"""
PRESETS = """## Presets

`apex presets show NAME` prints a preset. The column *sets* lists the keys that differ from their
defaults: first for all machines, then for those with a GPU (`gpu`) or without one (`cpu`).
"""
PRESET_HEAD = ("preset", "what it is", "algorithm", "environment", "sets")
IN_COLUMNS = ("algorithm.name", "env.id")
"""Keys with their own column in the table of presets."""
FIELD_HEAD = ("key", "type", "default", "meaning")
Sections = Mapping[str, type[msgspec.Struct]]


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION]
    parts += [section(f"[{name}]", doc(kind), kind) for name, kind in plain_sections().items()]
    for name, algorithm in ALGORITHMS.items():
        text = f"{doc(algorithm)} {doc(algorithm.Config)}"
        parts.append(section(f"[algorithm] {name}", text, algorithm.Config))
    parts += [PRESETS, table(PRESET_HEAD, map(preset_row, loading.preset_names()))]
    return "\n".join(parts)


def doc(kind: type) -> str:
    """The docstring of a class."""
    return inspect.getdoc(kind) or ""


def plain_sections() -> Sections:
    """The sections that are the same for every algorithm."""
    fields = {field.name: field.type for field in _fields(Config)}
    return {name: kind.cls for name, kind in fields.items() if isinstance(kind, types.StructType)}


def section(title: str, text: str, kind: type[msgspec.Struct]) -> str:
    """Heading, text and table of a struct's fields."""
    docs = attribute_docs(kind)
    rows = [
        (f"`{f.encode_name}`", f"`{type_text(f.type)}`", default(f), docs.get(f.name, ""))
        for f in _fields(kind)
    ]
    return f"## {title}\n\n{text}\n\n{table(FIELD_HEAD, rows)}"


def _fields(kind: type[msgspec.Struct]) -> tuple[types.Field, ...]:
    info = types.type_info(kind)
    assert isinstance(info, types.StructType)
    return info.fields


def default(field: types.Field) -> str:
    """The default of a field as TOML, or `required` or `none`."""
    value = default_value(field)
    if value is msgspec.NODEFAULT:
        return "required"
    return "none" if value is None else toml(value)


def default_value(field: types.Field) -> Any:
    """The default of a field as a parsed file would have it, or `msgspec.NODEFAULT`."""
    made = field.default_factory is not msgspec.NODEFAULT
    value = field.default_factory() if made else field.default
    return list(value) if isinstance(value, tuple) else value


def toml(value: Any) -> str:
    """A value as written in a configuration; for its types JSON and TOML are the same."""
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def type_text(kind: types.Type) -> str:
    """A type with its bounds, such as `float > 0 and ≤ 1` or `[int ≥ 1, …]`."""
    match kind:
        case types.IntType():
            return _bounded("int", kind)
        case types.FloatType():
            return _bounded("float", kind)
        case types.LiteralType():
            return " or ".join(json.dumps(value) for value in kind.values)
        case types.UnionType():
            others = [one for one in kind.types if not isinstance(one, types.NoneType)]
            return " or ".join(map(type_text, others))
        case types.TupleType():
            return f"[{', '.join(map(type_text, kind.item_types))}]"
        case types.VarTupleType() | types.ListType():
            return f"[{type_text(kind.item_type)}, …]"
        case types.DictType():
            return "table"
    return type(kind).__name__.removesuffix("Type").lower()


def _bounded(name: str, kind: types.IntType | types.FloatType) -> str:
    bounds = ((kind.ge, "≥"), (kind.gt, ">"), (kind.le, "≤"), (kind.lt, "<"))
    limits = [f"{sign} {bound:g}" for bound, sign in bounds if bound is not None]
    return f"{name} {' and '.join(limits)}".rstrip()


def preset_row(name: str) -> tuple[str, ...]:
    """Name, description, algorithm, environment, and the folded list of settings."""
    raw = loading.preset_table(name)
    algorithm = raw["algorithm"]["name"]
    kinds = {**plain_sections(), "algorithm": ALGORITHMS[algorithm].Config}
    lines = list(changes(raw, kinds))
    folded = f"<details><summary>{len(lines)} keys</summary>{'<br>'.join(lines)}</details>"
    about = opening_comment(loading.preset_text(name))
    return f"`{name}`", about, f"`{algorithm}`", f"`{raw['env']['id']}`", folded


def opening_comment(text: str) -> str:
    """The comment at the top of a TOML file."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.lstrip("# ") for line in lines)


def changes(raw: Mapping[str, Any], kinds: Sections, part: str = "") -> Iterator[str]:
    """Settings of a preset that differ from the defaults, and all settings of its machine parts."""
    for name, settings in raw.items():
        if name in OVERLAYS:
            yield from changes(settings, kinds, f"{name}: ")
            continue
        defaults = {field.name: default_value(field) for field in _fields(kinds[name])}
        for key, value in settings.items():
            if f"{name}.{key}" not in IN_COLUMNS and (part or toml(value) != toml(defaults[key])):
                yield f"{part}`{name}.{key} = {json.dumps(value)}`"
