"""Learning curves: the evaluations of runs, gathered, averaged, and kept as CSV."""

from __future__ import annotations

import csv
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt

from apex.errors import RunError, UsageError
from apex.runs.directory import RunDirectory
from apex.runs.recorded_metrics import older_and_newer

log = logging.getLogger("apex.evaluation.curves")

Axis = Literal["wall", "env_steps", "learner_step"]
Floats = npt.NDArray[np.float64]

GRID_POINTS = 400
TIMESTAMP = re.compile(r"-\d{8}-\d{6}(-\d+)?$")


class Evaluation(NamedTuple):
    """One evaluation: greedy whole episodes, unclipped."""

    wall_s: float
    """Seconds of training when the parameters that played were published."""
    env_steps: int
    learner_step: int
    mean_return: float
    min_return: float
    max_return: float
    episodes: int


@dataclass(frozen=True)
class Curve:
    """The evaluations of one run, in the order of its training.

    Args:
        label: curves with one label are of one configuration and differ in the seed alone.
        seed: of the run.
        evaluations: at least one.
    """

    label: str
    seed: int
    evaluations: tuple[Evaluation, ...]

    def axis(self, x: Axis) -> Floats:
        """`[K]`, the x-values; wall clock in minutes."""
        if x == "wall":
            return np.array([e.wall_s / 60.0 for e in self.evaluations])
        return np.array([getattr(e, x) for e in self.evaluations], dtype=np.float64)

    @property
    def returns(self) -> Floats:
        """`[K]`, the mean returns."""
        return np.array([e.mean_return for e in self.evaluations])

    def first_at(self, mean_return: float) -> Evaluation | None:
        """The first evaluation of at least `mean_return`."""
        return next((e for e in self.evaluations if e.mean_return >= mean_return), None)


class Band(NamedTuple):
    """Mean and spread of several curves: `[G]` each."""

    x: Floats
    mean: Floats
    low: Floats
    high: Floats


def band(curves: Sequence[Curve], x: Axis) -> Band:
    """Mean, smallest and largest return of curves, linear between evaluations.

    It begins where all have a value. A run that has ended (at its target, most often) counts on
    with its last one.
    """
    axes = [curve.axis(x) for curve in curves]
    grid = np.linspace(max(a[0] for a in axes), max(a[-1] for a in axes), GRID_POINTS)
    values = np.stack([np.interp(grid, a, c.returns) for a, c in zip(axes, curves)])
    return Band(grid, values.mean(axis=0), values.min(axis=0), values.max(axis=0))


def gather(paths: Iterable[Path]) -> dict[str, list[Curve]]:
    """Curves of runs and CSV files by label.

    Runs whose configurations differ in `[run]` alone (the seed and the limits) get one label.

    Raises:
        RunError: a path is no run and no CSV file of curves, or has no evaluation yet.
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
    """The evaluations of a run, resumed ones included, in the order of its training.

    A learner that goes back to a checkpoint, because it was killed or diverged, leaves evaluations
    of a training that did not go on; they are no part of the curve.

    Raises:
        RunError: there is none.
    """
    kept: list[Evaluation] = []
    for evaluation in _evaluations(run):
        while kept and kept[-1].learner_step >= evaluation.learner_step:
            kept.pop()
        kept.append(evaluation)
    if not kept:
        raise RunError(
            f"{run.path} has no evaluation yet; the first begins evaluator.period_s after "
            "the first learner step and takes minutes on few cores: `apex logs evaluator`"
        )
    return tuple(kept)


def _evaluations(run: RunDirectory) -> Iterable[Evaluation]:
    for path, text in older_and_newer(run.metrics / "evaluator.jsonl"):
        for number, line in enumerate(text.splitlines(), 1):
            try:
                row = json.loads(line)
                yield _from_row({**row, "wall_s": row["train_s"]})
            except (ValueError, KeyError, TypeError) as error:
                # A full disk or a kill may have cut it off.
                log.warning("%s, line %d: passed over, no evaluation: %s", path, number, error)


def _from_row(row: Mapping[str, Any]) -> Evaluation:
    """Raises `KeyError` and `msgspec.ValidationError`, a `ValueError`."""
    values = [row[name] for name in Evaluation._fields]
    return msgspec.convert(values, Evaluation, strict=False)


HEADER = ("label", "seed", *Evaluation._fields)


def write_csv(path: Path, curves: Iterable[Curve]) -> None:
    """Write curves, one evaluation a line."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        for curve in curves:
            writer.writerows((curve.label, curve.seed, *e) for e in curve.evaluations)


def read_csv(path: Path) -> list[Curve]:
    """The curves that `write_csv` wrote. Raises `RunError`."""
    rows: dict[tuple[str, int], list[Evaluation]] = {}
    with path.open(newline="", encoding="utf-8") as file:
        try:
            for row in csv.DictReader(file):
                rows.setdefault((row["label"], int(row["seed"])), []).append(_from_row(row))
        except (KeyError, ValueError, TypeError, UnicodeDecodeError) as error:
            raise RunError(
                f"{path}: expected the columns {', '.join(HEADER)}, got {error!r}"
            ) from None
    if not rows:
        raise RunError(f"{path}: no curve in it")
    return [Curve(label, seed, tuple(found)) for (label, seed), found in rows.items()]


AXIS_LABELS = {
    "wall": "minutes of training",
    "env_steps": "environment steps",
    "learner_step": "learner steps",
}


def draw(groups: dict[str, list[Curve]], x: Axis, title: str, out: Path) -> None:
    """Draw each run thinly, and each label's mean with the band from lowest to highest.

    Raises:
        UsageError: matplotlib is missing, or it knows no format of that ending.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("plots need matplotlib: pip install 'apex-suite[plot]'") from None
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    for number, (label, curves) in enumerate(groups.items()):
        colour = f"C{number}"
        many = len(curves) > 1
        for curve in curves:
            axes.plot(
                curve.axis(x), curve.returns, color=colour, linewidth=0.8 if many else 1.8,
                alpha=0.6 if many else 1.0, marker=".", markersize=3,
                label=None if many else f"{label}, seed {curve.seed}",
            )  # fmt: skip
        if many:
            middle = band(curves, x)
            text = f"{label}, mean of {len(curves)} seeds"
            axes.plot(middle.x, middle.mean, color=colour, linewidth=2.0, label=text)
            axes.fill_between(middle.x, middle.low, middle.high, color=colour, alpha=0.2)
    axes.set_xlabel(AXIS_LABELS[x])
    axes.set_ylabel("mean return of an evaluation")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    try:
        figure.savefig(out)
    except ValueError as error:
        raise UsageError(f"{out}: {error}") from None
