"""Markdown tables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

PIPE = re.compile(r"(`[^`]*`)|\|")
"""A code span, in which `|` needs no escape, or a `|` that would end a cell."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells may contain line ends and `|`."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return PIPE.sub(lambda match: match.group(1) or r"\|", " ".join(text.split()))
