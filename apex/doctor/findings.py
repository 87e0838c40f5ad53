"""A finding: what a check saw, what it expected, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeAlias

import msgspec

from apex.plugins import RAISED

State: TypeAlias = Literal["ok", "note", "warning", "problem"]
"""`note`: worth knowing, nothing to do; `warning`: works, but less well than it could; `problem`:
something that is needed will not work."""


class Finding(msgspec.Struct, frozen=True):
    """The result of one check."""

    check: str
    """Subject of the check, in a word or two."""
    state: State
    found: str
    expected: str = ""
    remedy: str = ""
    """A command or a sentence; empty if there is nothing to do."""


Check: TypeAlias = Callable[[], Iterable[Finding]]


def guarded(name: str, check: Check) -> Iterator[Finding]:
    """Yield the findings of a check; if the check itself fails, yield a warning about that."""
    try:
        yield from check()
    except RAISED as error:
        yield Finding(
            name,
            "warning",
            f"this check itself failed: {type(error).__name__}: {error}",
            "a check that does not fail",
            "the other findings are valid; please report this one as a bug of apex",
        )


def format_bytes(count: float) -> str:
    """Format a number of bytes as MB or GB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
