"""Learning curves: collect the evaluations of runs, average, plot and save them as CSV."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from apex.acting.episodes import COLUMN_PREFIX, metric_columns
from apex.errors import RunError, UsageError
from apex.runs.directory import RunDirectory
from apex.runs.recorded_metrics import older_and_newer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

log = logging.getLogger("apex.evaluation.curves")

MEAN_RETURN = "mean_return"
RETURN_METRICS = (MEAN_RETURN, "min_return", "max_return")
"""Metrics that every evaluation has."""

Axis = Literal["wall", "env_steps", "learner_step"]
Floats = npt.NDArray[np.float64]

GRID_POINTS = 400
TIMESTAMP = re.compile(r"-\d{8}-\d{6}(-\d+)?$")


class Evaluation(NamedTuple):
    """One evaluation: whole greedy episodes with unclipped returns."""

    wall_s: float
    """Seconds of training until the evaluated parameters were published."""
    env_steps: int
    learner_step: int
    mean_return: float
    min_return: float
    max_return: float
    episodes: int
    metrics: Mapping[str, float] = {}
    """Means of the scalars of `info` that were measured, by name."""


FIELDS = Evaluation._fields[:-1]


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, in the order of training.

    Args:
        label: name of the configuration; curves with the same label differ only in the seed.
        seed: seed of the run.
        evaluations: at least one.
    """

    label: str
    seed: int
    evaluations: tuple[Evaluation, ...]

    def axis(self, x: Axis) -> Floats:
        """The x-values `[K] float64`; wall clock in minutes."""
        if x == "wall":
            return np.array([e.wall_s / 60.0 for e in self.evaluations])
        return np.array([getattr(e, x) for e in self.evaluations], dtype=np.float64)

    def points(self, x: Axis, metric: str) -> tuple[Floats, Floats]:
        """x-values and values of a metric, `[P] float64` each, where an evaluation has it."""
        named = metric in RETURN_METRICS
        values = np.array(
            [getattr(e, metric) if named else e.metrics.get(metric, np.nan)
             for e in self.evaluations]
        )  # fmt: skip
        known = ~np.isnan(values)
        return self.axis(x)[known], values[known]

    def first_at(self, mean_return: float) -> Evaluation | None:
        """The first evaluation with at least `mean_return`; None if there is none."""
        return next((e for e in self.evaluations if e.mean_return >= mean_return), None)


class Band(NamedTuple):
    """Mean, lowest and highest value of several curves: `[G] float64` each."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats


def band(curves: Sequence[Curve], x: Axis, metric: str = MEAN_RETURN) -> Band:
    """Mean, lowest and highest value of curves, interpolated linearly between evaluations.

    The band begins where all curves have a value. After the end of a run, usually at its target
    return, its last value is used.
    """
    points = [curve.points(x, metric) for curve in curves]
    axes = [axis for axis, _ in points]
    grid = np.linspace(max(a[0] for a in axes), max(a[-1] for a in axes), GRID_POINTS)
    values = np.stack([np.interp(grid, axis, values) for axis, values in points])
    return Band(grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def gather(paths: Iterable[Path]) -> dict[str, list[Curve]]:
    """Read the curves of runs and CSV files, grouped by label.

    Runs whose configurations differ only in `[run]` (the seed and the limits) get the same label.

    Raises:
        RunError: a path is neither a run nor a CSV file of curves, or has no evaluation yet.
    """
    groups: dict[str, list[Curve]] = {}
    labels: dict[bytes, str] = {}
    for path in paths:
        if path.is_file():
            found = read_csv(path)
        else:
            run = RunDirectory(path)
            if not run.exists:
                raise RunError(f"{path} is neither a run's directory nor a CSV file of curves")
            found = [_of_run(run, labels, set(groups))]
        for curve in found:
            groups.setdefault(curve.label, []).append(curve)
    return groups


def _of_run(run: RunDirectory, labels: dict[bytes, str], taken: set[str]) -> Curve:
    config = run.config()
    settings = {k: v for k, v in msgspec.to_builtins(config).items() if k != "run"}
    key = msgspec.json.encode(settings, order="deterministic")
    name = TIMESTAMP.sub("", run.path.name)
    names = [name, run.path.name, *(f"{run.path.name} ({number})" for number in range(2, 100))]
    label = labels.setdefault(key, next(each for each in names if each not in taken))
    return Curve(label, config.run.seed, of_run(run))


def of_run(run: RunDirectory) -> tuple[Evaluation, ...]:
    """The evaluations of a run, including those before a resume, in the order of training.

    When a learner returns to a checkpoint, because it was killed or diverged, the evaluations
    after that checkpoint are dropped.

    Raises:
        RunError: the run has no evaluation yet.
    """
    kept: list[Evaluation] = []
    for evaluation in _evaluations(run):
        while kept and kept[-1].learner_step >= evaluation.learner_step:
            kept.pop()
        kept.append(evaluation)
    if not kept:
        raise RunError(
            f"{run.path} has no evaluation yet; the first begins evaluator.period_s after "
            "the first learner step and takes minutes on few cores; see `apex logs evaluator`"
        )
    return tuple(kept)


def _evaluations(run: RunDirectory) -> Iterable[Evaluation]:
    for path, text in older_and_newer(run.metrics / "evaluator.jsonl"):
        for number, line in enumerate(text.splitlines(), 1):
            try:
                row = json.loads(line)
                yield _from_row({**row, "wall_s": row["train_s"]})
            except (ValueError, KeyError, TypeError) as error:
                # A full disk or a kill may have cut the line off.
                log.warning("%s, line %d: skipped, not an evaluation: %s", path, number, error)


def _from_row(row: Mapping[str, Any]) -> Evaluation:
    """Convert a record. Raises `KeyError` or `ValueError` (`msgspec.ValidationError`)."""
    values = [row[name] for name in FIELDS]
    metrics = {
        name.removeprefix(COLUMN_PREFIX): value
        for name, value in row.items()
        if name.startswith(COLUMN_PREFIX) and value not in (None, "")
    }
    return msgspec.convert([*values, metrics], Evaluation, strict=False)


HEADER = ("label", "seed", *FIELDS)


def write_csv(path: Path, curves: Iterable[Curve]) -> None:
    """Write curves as CSV, one evaluation per line; measured scalars are columns `info/NAME`."""
    rows = [
        {
            "label": curve.label,
            "seed": curve.seed,
            **{name: getattr(evaluation, name) for name in FIELDS},
            **metric_columns(evaluation.metrics),
        }
        for curve in curves
        for evaluation in curve.evaluations
    ]
    names = dict.fromkeys(name for row in rows for name in row)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*names] or HEADER)
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> list[Curve]:
    """Read the curves that `write_csv` wrote. Raises `RunError`."""
    rows: dict[tuple[str, int], list[Evaluation]] = {}
    # A spreadsheet that has saved the file may have put a byte order mark first.
    with path.open(newline="", encoding="utf-8-sig") as file:
        try:
            for row in csv.DictReader(file):
                rows.setdefault((row["label"], int(row["seed"])), []).append(_from_row(row))
        except (KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
            raise RunError(
                f"{path}: expected the columns {', '.join(HEADER)}, got {error!r}"
            ) from None
    if not rows:
        raise RunError(f"{path}: expected at least one evaluation, got an empty file")
    return [Curve(label, seed, tuple(found)) for (label, seed), found in rows.items()]


AXIS_LABELS = {
    "wall": "minutes of training",
    "env_steps": "environment steps",
    "learner_step": "learner steps",
}


def having(groups: dict[str, list[Curve]], metric: str) -> dict[str, list[Curve]]:
    """The curves that have a metric. Raises `UsageError` if none has it."""
    found = {
        label: [curve for curve in curves if len(curve.points("wall", metric)[0])]
        for label, curves in groups.items()
    }
    kept = {label: curves for label, curves in found.items() if curves}
    if kept:
        return kept
    evaluations = [e for curves in groups.values() for curve in curves for e in curve.evaluations]
    measured = dict.fromkeys(name for evaluation in evaluations for name in evaluation.metrics)
    raise UsageError(
        f"no evaluation has the metric '{metric}'; there are: "
        f"{', '.join([*RETURN_METRICS, *measured])}. env.metrics names scalars of info to measure"
    )


def draw(
    groups: dict[str, list[Curve]], x: Axis, title: str, out: Path, metric: str = MEAN_RETURN
) -> None:
    """Plot each run as a thin line, and each label's mean with a band from lowest to highest.

    Args:
        groups: curves by label.
        x: quantity of the x-axis.
        title: title of the picture.
        out: the picture's file.
        metric: quantity of the y-axis: one of `RETURN_METRICS`, or a measured scalar of `info`.

    Raises:
        UsageError: matplotlib is missing, or does not know the file name's ending; or no
            evaluation has the metric.
    """
    groups = having(groups, metric)
    try:
        from matplotlib import rc_context
    except ImportError:
        raise UsageError("plots need matplotlib: pip install 'apex-suite[plot]'") from None
    try:
        with rc_context({"text.parse_math": False}):  # a label may have dollar signs
            _figure(groups, x, title, metric).savefig(out)
    except ValueError as error:
        raise UsageError(f"{out}: {error}") from None


def _figure(groups: dict[str, list[Curve]], x: Axis, title: str, metric: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for number, (label, curves) in enumerate(groups.items()):
        colour = f"C{number}"
        many = len(curves) > 1
        for curve in curves:
            axes.plot(
                *curve.points(x, metric), color=colour, linewidth=0.8 if many else 1.8,
                alpha=0.6 if many else 1.0, marker=".", markersize=3,
                label=None if many else f"{label}, seed {curve.seed}",
            )  # fmt: skip
        if many:
            middle = band(curves, x, metric)
            text = f"{label}, mean of {len(curves)} seeds"
            axes.plot(middle.x, middle.mean, color=colour, linewidth=2.0, label=text)
            axes.fill_between(middle.x, middle.low, middle.high, color=colour, alpha=0.2)
    axes.set_xlabel(AXIS_LABELS[x])
    name = metric.replace("_", " ") if metric in RETURN_METRICS else metric
    axes.set_ylabel(f"{name} of an evaluation")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    return figure
