"""Griffe extension for msgspec structs and for arguments documented on one line."""

from __future__ import annotations

import re
from typing import Any

from griffe import (
    Attribute,
    Class,
    Extension,
    Function,
    Module,
    Parameter,
    ParameterKind,
    Parameters,
)

STRUCT = "msgspec.Struct"
JOINED = re.compile(r"^( +)(\w+(?:, \w+)+):(.*(?:\n\1 .*)*)", re.MULTILINE)
"""`    low, high: text` in a docstring's section, with its continuation lines."""


class ApexSources(Extension):
    """Adds to each struct the `__init__` that msgspec gives it, and splits joined arguments."""

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Called after a package was read."""
        self._visit(pkg)

    def _visit(self, thing: Module | Class) -> None:
        for member in list(thing.members.values()):
            if member.is_alias:
                continue
            if member.docstring is not None:
                member.docstring.value = JOINED.sub(_parted, member.docstring.value)
            if isinstance(member, Class) and is_struct(member) and "__init__" not in member.members:
                member.set_member("__init__", constructor(member))
            if isinstance(member, Module | Class):
                self._visit(member)


def _parted(match: re.Match[str]) -> str:
    indent, names, text = match.groups()
    return "\n".join(f"{indent}{name}:{text}" for name in names.split(", "))


def is_struct(kind: Class) -> bool:
    """Whether a class is a msgspec struct, directly or through a base."""
    direct = any(getattr(base, "canonical_path", base) == STRUCT for base in kind.bases)
    return direct or any(is_struct(base) for base in kind.resolved_bases if isinstance(base, Class))


def constructor(struct: Class) -> Function:
    """The `__init__` of a struct: the fields of its bases, then its own."""
    fields: dict[str, Attribute] = {}
    for kind in [*reversed(struct.mro()), struct]:
        own = (one for one in kind.members.values() if isinstance(one, Attribute))
        fields |= {one.name: one for one in own if one.annotation and "property" not in one.labels}
    either = ParameterKind.positional_or_keyword
    parameters = [Parameter("self", kind=either)]
    for name, field in fields.items():
        parameters.append(
            Parameter(name, annotation=field.annotation, kind=either, default=field.value)
        )
    return Function(
        "__init__",
        parameters=Parameters(*parameters),
        returns="None",
        lineno=struct.lineno,
        endlineno=struct.endlineno,
        parent=struct,
    )
