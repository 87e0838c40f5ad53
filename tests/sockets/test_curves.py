"""Learning curves of runs: read, averaged, written as CSV and PNG."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from apex.daemons.metrics import MetricsLog
from apex.errors import RunError, UsageError
from apex.evaluation import curves
from apex.evaluation.curves import Curve, Evaluation
from apex.launch import prepare
from apex.runs.directory import RunDirectory
from tests.support.paths import ROOT


def evaluation(minute: float, mean: float) -> Evaluation:
    return Evaluation(60.0 * minute, int(1000 * minute), int(10 * minute), mean, mean - 1, 21.0, 20)


def curve(seed: int, *points: tuple[float, float]) -> Curve:
    return Curve("pong", seed, tuple(evaluation(*point) for point in points))


def make_run(path: Path, means: list[float], *settings: str) -> Path:
    run = prepare.prepare_run(path, prepare.preset_config("cartpole", settings))
    rows = [
        {"train_s": 30.0 * k, "env_steps": 100 * k, "learner_step": k, "mean_return": mean,
         "min_return": mean - 2, "max_return": mean + 2, "episodes": 20, "param_version": k}
        for k, mean in enumerate(means)
    ]  # fmt: skip
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.metrics / "evaluator.jsonl").write_text(text)
    return path


def test_abandoned_training_and_torn_lines_are_left_out_of_the_curve(tmp_path, caplog):
    run = RunDirectory(make_run(tmp_path / "run", [0.0, 1.0, 2.0, 3.0]))
    with (run.metrics / "evaluator.jsonl").open("a") as file:
        file.write('{"train_s": 7')
    lines = MetricsLog(run.metrics, "evaluator", 1.0, tensorboard=False)
    again = {"train_s": 75.0, "env_steps": 250, "learner_step": 2, "mean_return": 9.0,
             "min_return": 9.0, "max_return": 9.0, "episodes": 20}  # fmt: skip
    lines.write(again, step=250)
    lines.close()
    found = [(e.learner_step, e.mean_return) for e in curves.of_run(run)]
    assert found == [(0, 0.0), (1, 1.0), (2, 9.0)]
    assert "line 5: skipped" in caplog.text


def test_runs_with_equal_names_and_different_settings_are_separate_curves(tmp_path):
    paths = [
        make_run(tmp_path / where / "pong", [1.0, 2.0], f"algorithm.n_step={n}")
        for n, where in enumerate("abc", 1)
    ]
    assert list(curves.gather(paths)) == ["pong", "pong (2)", "pong (3)"]


# Only the CSV of a curve has a picture over environment steps beside it.
COMMITTED = [
    path.with_name(path.name.replace("-env-steps.png", ".csv"))
    for path in ROOT.glob("benchmarks/*/*-env-steps.png")
]


@pytest.mark.parametrize("path", sorted(COMMITTED), ids=lambda path: path.name)
def test_committed_curves_can_be_drawn(path):
    assert all(len(curve.evaluations) > 0 for curve in curves.read_csv(path))


def test_band_has_mean_and_extremes_and_an_ended_run_keeps_its_last_value():
    a, b = curve(1, (0, 0), (2, 20), (4, 20)), curve(2, (1, 10), (3, 10))
    middle = curves.band([a, b], "wall")
    assert (middle.x[0], middle.x[-1]) == (1.0, 4.0)
    at = np.searchsorted(middle.x, 1.5)
    x = middle.x[at]
    assert middle.high[at] == pytest.approx(10 * x) and middle.low[at] == 10.0
    assert middle.mean[at] == pytest.approx((10 * x + 10) / 2)
    assert (middle.low[-1], middle.mean[-1], middle.high[-1]) == (10.0, 15.0, 20.0)


def test_axes_are_minutes_env_steps_and_learner_steps():
    one = curve(1, (1, -21.0), (2.5, 18.0))
    assert one.axis("wall").tolist() == [1.0, 2.5]
    assert one.axis("env_steps").tolist() == [1000.0, 2500.0]
    assert one.axis("learner_step").tolist() == [10.0, 25.0]
    assert one.first_at(18.0) == one.evaluations[1] and one.first_at(18.1) is None


def test_runs_that_differ_only_in_the_seed_are_one_curve(tmp_path):
    same = make_run(tmp_path / "cartpole-20260101-000000", [1.0, 2.0], "run.seed=1")
    also = make_run(
        tmp_path / "cartpole-20260101-000001", [1.0], "run.seed=2", "run.until_return=9"
    )
    other = make_run(
        tmp_path / "cartpole-20260101-000002", [5.0], "run.seed=1", "algorithm.n_step=1"
    )
    groups = curves.gather([same, also, other])
    assert {label: [c.seed for c in group] for label, group in groups.items()} == {
        "cartpole": [1, 2],
        "cartpole-20260101-000002": [1],
    }
    assert groups["cartpole"][0].evaluations[1] == Evaluation(30.0, 100, 1, 2.0, 0.0, 4.0, 20)


def test_csv_reads_back_equal_and_joins_runs(tmp_path):
    both = [curve(1, (0, -21.0), (1, -20.5)), curve(2, (0.25, -21.0))]
    curves.write_csv(tmp_path / "c.csv", both)
    header = (tmp_path / "c.csv").read_text().splitlines()[0]
    assert header == (
        "label,seed,wall_s,env_steps,learner_step,mean_return,min_return,max_return,episodes"
    )
    assert curves.gather([tmp_path / "c.csv"]) == {"pong": both}


def test_older_half_of_a_rotated_file_comes_first(tmp_path):
    path = make_run(tmp_path / "run", [1.0, 2.0, 3.0])
    file = path / "metrics" / "evaluator.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.with_name("evaluator.jsonl.1").write_text("".join(lines[:2]))
    file.write_text(lines[2])
    assert [e.mean_return for e in curves.gather([path])["run"][0].evaluations] == [1.0, 2.0, 3.0]


def measuring(seed: int, *values: float | None) -> Curve:
    """A curve of evaluations at minutes 0, 1, 2, …, some of which have measured `success`."""
    rows = [
        evaluation(minute, 10.0)._replace(metrics={} if value is None else {"success": value})
        for minute, value in enumerate(values)
    ]
    return Curve("pong", seed, tuple(rows))


def test_metric_of_info_has_values_where_an_evaluation_measured_it(tmp_path):
    path = make_run(tmp_path / "run", [1.0, 2.0, 3.0])
    file = path / "metrics" / "evaluator.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    for row, value in zip(rows, (None, 0.25, 0.5)):
        row["info/success"] = value
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (one,) = curves.gather([path])["run"]
    x, values = one.points("env_steps", "success")
    assert (x.tolist(), values.tolist()) == ([100.0, 200.0], [0.25, 0.5])
    assert one.points("env_steps", "min_return")[1].tolist() == [-1.0, 0.0, 1.0]


def test_metric_of_info_is_averaged_between_the_runs_that_have_it():
    middle = curves.band(
        [measuring(1, None, 0.0, 1.0), measuring(2, 0.5, 0.5, 0.5)], "wall", "success"
    )
    assert (middle.x[0], middle.x[-1], middle.mean[0], middle.mean[-1]) == (1.0, 2.0, 0.25, 0.75)


def test_metrics_of_info_are_columns_of_the_csv_and_read_back_equal(tmp_path):
    both = [measuring(1, None, 0.25), curve(2, (0, 1))]
    curves.write_csv(tmp_path / "c.csv", both)
    lines = (tmp_path / "c.csv").read_text().splitlines()
    assert lines[0].endswith(",episodes,info/success")
    assert [line.rpartition(",")[2] for line in lines[1:]] == ["", "0.25", ""]
    assert curves.read_csv(tmp_path / "c.csv") == both


def test_metric_that_no_evaluation_has_is_refused_with_those_that_there_are(tmp_path):
    with pytest.raises(UsageError, match=r"'sucess'; there are: mean_return, .*, success"):
        curves.draw({"a": [measuring(1, 0.5)]}, "wall", "", tmp_path / "a.png", "sucess")
    curves.draw({"a": [measuring(1, 0.5)], "b": [curve(1, (0, 0))]}, "wall", "",
                tmp_path / "a.png", "success")  # fmt: skip
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("x", ["wall", "env_steps", "learner_step"])
def test_picture_is_a_png_that_is_not_empty(tmp_path, x):
    out = tmp_path / "out.png"
    groups = {"a": [curve(1, (0, 0), (2, 3)), curve(2, (0, 1), (3, 4))], "b": [curve(1, (1, 1))]}
    curves.draw(groups, x, "a title", out)
    assert out.read_bytes().startswith(b"\x89PNG") and out.stat().st_size > 5000


def test_path_that_is_neither_run_nor_curve_is_refused(tmp_path):
    with pytest.raises(RunError, match="neither a run's directory nor a CSV"):
        curves.gather([tmp_path / "nothing"])
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RunError, match="expected the columns label, seed"):
        curves.gather([tmp_path / "bad.csv"])
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(RunError, match="expected at least one evaluation"):
        curves.gather([tmp_path / "empty.csv"])
    with pytest.raises(RunError, match="has no evaluation yet"):
        curves.gather([make_run(tmp_path / "young", [])])
    with pytest.raises(UsageError, match=r"nothing\.xyz"):
        curves.draw({"a": [curve(1, (0, 0))]}, "wall", "", tmp_path / "nothing.xyz")


def test_curves_saved_by_a_spreadsheet_are_read_and_labels_are_drawn_as_they_are(
    tmp_path: Path,
) -> None:
    path, label = tmp_path / "curves.csv", "a$b%c_{d"
    saved = Curve(label, 1, (evaluation(1.0, 2.0), evaluation(2.0, 3.0)))
    curves.write_csv(path, [saved])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    groups = curves.gather([path])
    assert groups == {label: [saved]}
    curves.draw(groups, "wall", "50 % of $x", tmp_path / "curve.svg")
    drawn = (tmp_path / "curve.svg").read_text()
    assert f"<!-- {label}, seed 1 -->" in drawn and "<!-- 50 % of $x -->" in drawn
