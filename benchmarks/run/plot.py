"""Bar chart of each figure's distance from its bar."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from benchmarks.run.figures import Figure

FIELDS = [field.name for field in fields(Figure)]


def with_bars(results: Sequence[Path]) -> list[tuple[str, Figure]]:
    """The cases that have a bar, each with its name."""
    shown = []
    for path in results:
        record = json.loads(path.read_text())
        for case in record["cases"]:
            one = Figure(**{name: case[name] for name in FIELDS if name in case})
            if one.bar is not None or one.goal is not None:
                shown.append((f"{record['scenario']}: {one.case}", one))
    return shown


def draw(results: Sequence[Path], title: str, out: Path) -> None:
    """Draw one bar per case, from 1 to the median, with a line from minimum to maximum."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    cases = with_bars(results)
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.28 * len(cases)), layout="constrained")
    for row, (_, one) in enumerate(cases):
        _draw_case(axes, row, *one.margins)
    axes.set_yticks(range(len(cases)), [name for name, _ in cases], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log", base=2)
    axes.axvline(1.0, color="black", linewidth=1)
    axes.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axes.set_xlabel("times the bar; 1 is the bar itself, right of it is good")
    axes.set_title(title, fontsize=9)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def _draw_case(axes: Any, row: int, median: float, least: float, most: float) -> None:
    color = "tab:blue" if median >= 1.0 else "tab:red"
    axes.barh(row, median - 1.0, left=1.0, color=color, height=0.6)
    axes.plot([least, most], [row, row], color="black", linewidth=1)
