"""Last figures of an ended run, from its metrics files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from apex.daemons.status.last_figures import TAIL_BYTES, LastFigures, last_records
from apex.daemons.status.reports import (
    ActorReport,
    InferenceSummary,
    LearnerSummary,
    ReplaySummary,
    to_wire,
)
from apex.runs.directory import RunDirectory
from tests.support.statuses import replay_report

NO_LEARNER = LearnerSummary(state="down", pid=None, learner_step=500, param_version=20)
NO_REPLAY = ReplaySummary(state="down", pid=None, capacity=10_000)
NO_ACTOR = ActorReport(actor_id="actor_000", pid=None, state="down")


def over(path: Path, **records: list[dict[str, Any]]) -> LastFigures:
    """The last figures of a run whose daemons have written these records."""
    run = RunDirectory(path)
    run.metrics.mkdir()
    for daemon, rows in records.items():
        lines = "".join(json.dumps({"time": 1.0, "step": 1, **row}) + "\n" for row in rows)
        (run.metrics / f"{daemon}.jsonl").write_text(lines)
    return LastFigures(run)


def test_down_rows_have_the_figures_of_the_newest_record(tmp_path: Path) -> None:
    replay = to_wire(replay_report(items=700, bytes=22_400, refused=3, alarm="the disk was full"))
    last = over(
        tmp_path,
        learner=[{"updates_per_s": 1.0}, {"updates_per_s": 40.5, "samples_per_s": 1296.0,
                 "data_wait_fraction": 0.25, "rollbacks": 1, "loss": 0.5}],
        replay=[replay],
        inference=[{"decisions_per_s": 300.0, "batch_mean": 3.5, "param_version": 19}],
        actor_000=[{"step": 4_321, "env_steps_per_s": 150, "mean_return": None, "episodes": 7,
                    "phase": "stepping"}],
    )  # fmt: skip
    assert last.learner(NO_LEARNER) == LearnerSummary(
        state="down", pid=None, learner_step=500, param_version=20, updates_per_s=40.5,
        samples_per_s=1296.0, data_wait_fraction=0.25, rollbacks=1,
    )  # fmt: skip
    # Neither `alarm` nor `durable`: they mean nothing for a server that is down.
    assert last.replay(NO_REPLAY) == ReplaySummary(
        state="down", pid=None, capacity=10_000, items=700, bytes=22_400, inserts_per_s=300.0,
        samples_per_s=1280.0, refused=3,
    )  # fmt: skip
    assert last.inference(InferenceSummary(state="down", pid=None)) == InferenceSummary(
        state="down", pid=None, decisions_per_s=300.0, batch_mean=3.5, param_version=19
    )
    assert last.actor(NO_ACTOR) == ActorReport(
        actor_id="actor_000", pid=None, state="down", env_steps=4_321, env_steps_per_s=150.0,
        episodes=7,
    )  # fmt: skip


def test_run_without_metrics_or_with_broken_ones_has_no_figures(tmp_path: Path) -> None:
    last = over(tmp_path, learner=[{"updates_per_s": "fast"}])
    assert last.learner(NO_LEARNER) == NO_LEARNER
    assert last.replay(NO_REPLAY) == NO_REPLAY and last.actor(NO_ACTOR) == NO_ACTOR
    (tmp_path / "metrics" / "learner.jsonl").write_text('{"time": 1.0, "st')
    assert last.learner(NO_LEARNER) == NO_LEARNER and last.bottleneck(1_000) is None


@pytest.mark.parametrize(
    ("learner", "replay", "actor", "expected"),
    [
        ({"step": 0}, {"items": 40}, {},
         "warm-up: replay has 40 of the 1000 items that training needs to start"),
        ({"data_wait_fraction": 0.5}, {"waiting_samples": 1}, {"phase": "stepping"},
         "actors: the learner waits for their items (samples_per_insert)"),
        ({"data_wait_fraction": 0.5}, {"waiting_samples": 0}, {"phase": "stepping"},
         "data path: the learner waits for batches that replay could serve"),
        ({"data_wait_fraction": 0.0}, {}, {"phase": "waiting_for_credit"},
         "learner: actors wait for it (samples_per_insert)"),
        ({"data_wait_fraction": 0.0}, {}, {"phase": "leaving"},
         "learner: it computes all the time"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("records", ["one", "two"])
def test_bottleneck_is_taken_from_before_the_shutdown(
    tmp_path: Path, records: str, learner: Any, replay: Any, actor: Any, expected: str
) -> None:
    """The last of several records is from the shutdown, when all daemons wait for each other."""
    last = [] if records == "one" else [{"data_wait_fraction": 0.9, "phase": "waiting_for_credit"}]
    run = over(tmp_path, learner=[learner, *last], replay=[replay, *last], actor_000=[actor, *last])
    assert run.bottleneck(1_000) == expected


def test_records_are_read_from_the_end_of_a_file_and_of_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    assert last_records(path, 2) == []
    path.with_name("a.jsonl.1").write_text('{"n": 1}\n{"n": 2}\n')
    assert last_records(path, 2) == [{"n": 1}, {"n": 2}]
    path.write_text('{"n": 3}\n')
    assert last_records(path, 2) == [{"n": 2}, {"n": 3}]
    wide = "x" * (TAIL_BYTES // 3)
    path.write_text("".join(json.dumps({"n": n, "wide": wide}) + "\n" for n in range(10)))
    assert [record["n"] for record in last_records(path, 2)] == [8, 9]
    path.write_text('{"n": 4}\nno record\n[5]\n')
    assert last_records(path, 1) == [{"n": 4}]
    path.write_text('{"n": 4}\n{"n": 5}\n{"n"')
    assert last_records(path, 1) == [{"n": 5}] and last_records(path, 2) == [{"n": 4}, {"n": 5}]
