"""A finding: what a check saw, what it expected, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeAlias

import msgspec

State: TypeAlias = Literal["ok", "note", "warning", "problem"]
"""`note`: worth knowing, nothing to do; `warning`: works, but worse than it could; `problem`:
something that is asked for will not work."""


class Finding(msgspec.Struct, frozen=True):
    """What one check found."""

    check: str
    """What was looked at, in a word or two."""
    state: State
    found: str
    expected: str = ""
    remedy: str = ""
    """A command or a sentence; empty where there is nothing to do."""


Check: TypeAlias = Callable[[], Iterable[Finding]]


def guarded(name: str, check: Check) -> Iterator[Finding]:
    """The findings of a check; one that fails itself becomes a finding that says so."""
    try:
        yield from check()
    except Exception as error:
        yield Finding(
            name,
            "warning",
            f"this check itself failed: {type(error).__name__}: {error}",
            "a check that can look",
            "the other findings stand; please report this one",
        )


def megabytes(count: float) -> str:
    """A number of bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
