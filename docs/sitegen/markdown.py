"""Tables of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

PIPE = re.compile(r"(`[^`]*`)|\|")
"""Code, in which a `|` stands for itself, or a `|` that would end a cell."""


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; cells may have line ends and `|`."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(_cell, line))} |\n" for line in lines)


def _cell(text: str) -> str:
    return PIPE.sub(lambda match: match.group(1) or r"\|", " ".join(text.split()))
