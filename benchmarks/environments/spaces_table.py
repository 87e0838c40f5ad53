"""The table of spaces: its cells, as CSV and as Markdown."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import NamedTuple

from benchmarks.environments.spaces_rows import PRESETS, SPACES
from benchmarks.provenance import provenance

MODES = ("serial", "local", "central")
REMEDY_CHARACTERS = 160
"""Longest remedy in the Markdown; the CSV has the whole error."""


class Cell(NamedTuple):
    """Result of a space with an algorithm in one mode."""

    space: str
    algorithm: str
    mode: str
    result: str = ""
    """`learns`, `works`, `refused` or `fails`."""
    score: float | None = None
    """Mean return of the trained policy."""
    random: float | None = None
    """Mean return of random actions."""
    detail: str = ""
    """The error's text."""
    seed: int = 0
    commit: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from other cells."""
        return self.space, self.algorithm, self.mode

    @property
    def text(self) -> str:
        """The cell in the Markdown table."""
        if self.score is not None and self.random is not None:
            return f"{self.result} {self.score:.1f} (random {self.random:.1f})"
        return f"{self.result}: {remedy(self.detail)}" if self.detail else self.result


def remedy(error: str) -> str:
    """The end of an error, which says what to do."""
    text = " ".join(error.split()).split("; ")[-1].replace("|", "/")
    return text if len(text) <= REMEDY_CHARACTERS else text[: REMEDY_CHARACTERS - 1] + "…"


def read(out: Path) -> dict[tuple[str, str, str], Cell]:
    """Read the cells of the CSV; none if there is none."""
    path = out / "spaces.csv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        cells = [
            Cell(**{**row, "score": _number(row["score"]), "random": _number(row["random"]),
                    "seed": int(row["seed"])})
            for row in csv.DictReader(file)
        ]  # fmt: skip
    return {cell.key: cell for cell in cells}


def _number(text: str) -> float | None:
    return float(text) if text else None


def write(out: Path, cells: dict[tuple[str, str, str], Cell]) -> None:
    """Write `spaces.csv` and `spaces.md`."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "spaces.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Cell._fields)
        writer.writerows(cells.values())
    (out / "spaces.md").write_text(page(cells), encoding="utf-8")


def merged(cells: dict[tuple[str, str, str], Cell], space: str, algorithm: str) -> str:
    """The three modes of a space and an algorithm in one cell of the Markdown table.

    Equal ones are named once: an algorithm that refuses a space does so in each mode.
    """
    modes: dict[str, list[str]] = {}
    for mode in MODES:
        cell = cells.get((space, algorithm, mode))
        modes.setdefault("not measured" if cell is None else cell.text, []).append(mode)
    if len(modes) == 1:
        return next(iter(modes))
    return "<br>".join(f"{', '.join(names)}: {text}" for text, names in modes.items())


def page(cells: dict[tuple[str, str, str], Cell]) -> str:
    """The table with where it came from, in Markdown."""
    made = provenance()
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    counts = {
        name: sum(cell.result == name for cell in cells.values())
        for name in ("learns", "works", "refused", "fails")
    }
    possible = len(SPACES) * len(PRESETS) * len(MODES)
    commits = ", ".join(sorted({cell.commit for cell in cells.values()}))
    seeds = ", ".join(sorted({str(cell.seed) for cell in cells.values()}))
    lines = [
        "# Kinds of spaces, with each algorithm",
        "",
        f"**Of {possible} cells, {counts['learns']} learn, {counts['works']} work, "
        f"{counts['refused']} are refused with a remedy, {counts['fails']} fail and "
        f"{possible - len(cells)} were not measured.** `make environments-table` makes this table; "
        "the whole",
        "text of each error is in [spaces.csv](spaces.csv).",
        "",
        "- `serial`: a short training in one process (`apex run --serial`), then 20 greedy",
        "  episodes. It learns if their mean return reaches 60 on CartPole, 4 for the odd bounds,",
        "  else 5 of 8. It works if it trained and played, but did not reach that.",
        "- `local`, `central`: daemons, with local or central inference. It works if items were",
        "  made and trained on in 20 updates, and an evaluation ended, without a fault. This",
        "  says nothing about learning.",
        "- refused: the check before a run's start refuses it; the cell has the end of the error.",
        "  Without a mode, a cell is that of all three.",
        "",
        f"- {made['date']}, seed {seeds}, commit {commits}; last command: `{made['command']}`",
        f"- {made['machine']}; other work used its cores, too",
        f"- Python {made['python']}, {versions}",
        "",
        "| space | " + " | ".join(PRESETS) + " |",
        "|" + "---|" * (len(PRESETS) + 1),
    ]
    for space in SPACES:
        texts = [merged(cells, space.name, algorithm) for algorithm in PRESETS]
        lines.append("| " + " | ".join([space.name, *texts]) + " |")
    return "\n".join(lines) + "\n"
