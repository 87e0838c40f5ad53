"""The table of sets in docs/ENVIRONMENTS.md."""

from __future__ import annotations

from tests.support.paths import ROOT

COLUMNS = 5
"""A table of measured presets, which has others, follows it."""


def environments_table() -> dict[str, list[str]]:
    """Cells of each row by the set's name: set, environments, extra, presets, in `.venv`."""
    text = (ROOT / "docs" / "ENVIRONMENTS.md").read_text(encoding="utf-8")
    part = text.partition("## Ready sets")[2].partition("A preset names")[0]
    lines = [line for line in part.splitlines() if line.startswith("| `")]
    rows = [[cell.strip().replace("`", "") for cell in line.split("|")[1:-1]] for line in lines]
    return {row[0]: row for row in rows if len(row) == COLUMNS}
