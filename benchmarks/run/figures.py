"""Figures and their limits, measured in turn, so that both meet the same machine; and kept."""

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
    """What one thing does beside its limit: medians, and ratios of what was measured in turn.

    Args:
        case: of a scenario, such as `batch 512`.
        value: median.
        unit: of value and limit.
        limit: median.
        limited_by: what the limit is.
        ratio: median of value / limit.
        ratio_min: the smallest one.
        ratio_max: the largest one.
        bar: what the ratio should reach; None: no bar was set.
        goal: what the value should reach, where the bar is no ratio.
        lower_is_better: ratio and value should stay below bar and goal.
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
        """How far it is on the good side of its bar, where 1 is: median, least and most."""
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
    """Measure both so often, beginning with either in turn."""
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
    """The figure of `(value, limit)` pairs."""
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
    """What a scenario prints: the case that is farthest from its bar, and all of them."""
    worst = min(cases, key=lambda case: case.margins[0])
    return {"scenario": scenario, **asdict(worst), "cases": [asdict(case) for case in cases]}


def save(path: Path, measured: dict[str, Any], **more: Any) -> None:
    """Keep what a scenario printed, and where it comes from."""
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, (json.dumps({**measured, **more}, indent=1) + "\n").encode())


def _round(value: float) -> float:
    return float(f"{value:.5g}")
