"""Figures and their limits, measured in turns under the same conditions, and saved."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from apex.host.files import replace_file

REPETITIONS = 5

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class Figure:
    """A measured value and its limit: medians, and ratios of the pairs measured in turns.

    Args:
        case: name within the scenario, such as `batch 512`.
        value: median of the value.
        unit: unit of value and limit.
        limit: median of the limit.
        limited_by: what the limit is.
        ratio: median of value / limit.
        ratio_min: the smallest ratio.
        ratio_max: the largest ratio.
        bar: ratio to reach, or None.
        goal: value to reach, for cases whose bar is not a ratio, or None.
        lower_is_better: bar and goal are upper limits.
        extra: other figures of the same measurement.
    """

    case: str
    value: float
    unit: str
    limit: float
    limited_by: str
    ratio: float
    ratio_min: float
    ratio_max: float
    bar: float | None = None
    goal: float | None = None
    lower_is_better: bool = False
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def margins(self) -> tuple[float, float, float]:
        """Distance from the bar as (median, min, max) factors; above 1 is good."""
        ratios = (self.ratio, self.ratio_min, self.ratio_max)
        if self.bar is not None:
            margins = [ratio / self.bar for ratio in ratios]
        elif self.goal is not None:
            margins = [self.value / self.goal] * 3
        else:
            return (math.inf, math.inf, math.inf)
        if self.lower_is_better:
            margins = [1.0 / margin for margin in margins]
        return (margins[0], min(margins), max(margins))


def in_turn(
    value: Callable[[], Measured], limit: Callable[[], Measured], repetitions: int = REPETITIONS
) -> list[tuple[Measured, Measured]]:
    """Measure value and limit in turns; each goes first every other time."""
    pairs = []
    for repetition in range(repetitions):
        if repetition % 2:
            bound = limit()
            pairs.append((value(), bound))
        else:
            pairs.append((value(), limit()))
    return pairs


def figure(
    case: str,
    unit: str,
    pairs: Sequence[tuple[float, float]],
    limited_by: str,
    *,
    bar: float | None = None,
    goal: float | None = None,
    lower_is_better: bool = False,
    **extra: Any,
) -> Figure:
    """Make a `Figure` from `(value, limit)` pairs."""
    ratios = [value / limit for value, limit in pairs]
    return Figure(
        case,
        _round(statistics.median(value for value, _ in pairs)),
        unit,
        _round(statistics.median(limit for _, limit in pairs)),
        limited_by,
        round(statistics.median(ratios), 4),
        round(min(ratios), 4),
        round(max(ratios), 4),
        bar,
        goal,
        lower_is_better,
        extra,
    )


def line(scenario: str, cases: Sequence[Figure]) -> dict[str, Any]:
    """Output of a scenario: the case that is farthest from its bar, and all cases."""
    worst = min(cases, key=lambda case: case.margins[0])
    return {"scenario": scenario, **asdict(worst), "cases": [asdict(case) for case in cases]}


def save(path: Path, measured: dict[str, Any], **more: Any) -> None:
    """Save the output of a scenario with its provenance."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps({**measured, **more}, indent=1) + "\n").encode())


def _round(value: float) -> float:
    return float(f"{value:.5g}")
