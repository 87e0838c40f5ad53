"""The status as text, and the progress line without a terminal."""

from __future__ import annotations

from pathlib import Path

import pytest

from apex.cli.live_view import ViewFigures
from apex.cli.status_text import describe
from apex.daemons.status.reports import LearnerSummary, ReplaySummary
from apex.daemons.status.run_status import EvaluatorSummary, RunStatus
from tests.support.services import prepared
from tests.support.statuses import actor_report, inference_report, learner_report, run_status


def over(outcome: str | None) -> RunStatus:
    """A run without living processes, with its outcome."""
    return run_status(
        run={"engine": None, "uptime_s": 0.0, "outcome": outcome,
             "bottleneck": "learner: it computes all the time"},
        learner=LearnerSummary(state="down", pid=None, learner_step=500),
        replay=ReplaySummary(state="down", pid=None, capacity=10_000, items=5_000, bytes=160_000),
        evaluator=EvaluatorSummary(state="down", pid=None, mean_return=25.0, best_mean_return=30.0),
        actors=(actor_report(0, state="down", pid=None),),
    )  # fmt: skip


def test_running_suite_is_described_by_a_line_for_each_daemon() -> None:
    status = run_status(
        run={"health": "healthy", "bottleneck": "learner: it computes all the time",
             "alarms": ("the disk is \x1b[2Jfull",)},
        learner=learner_report(rollbacks=1),
        inference=inference_report(),
        actors=(actor_report(0, env_faults=2, metrics={"success": 0.25, "\x1b[2J": 12345.6}),),
    )  # fmt: skip
    assert describe(status).splitlines() == [
        "/runs/x: apex_dqn on CartPole-v1, healthy, engine supervisor, up 00:01:10",
        "  env steps 5,000  frames 5,000",
        "  bottleneck: learner: it computes all the time",
        "  learner   training   pid 11  step 500  40.0 updates/s  1280.0 samples/s  version 20",
        "  replay    running    pid 12  5,000 of 10,000 items  0.2 MB  300.0 inserts/s  refused 0",
        "  evaluator idle       pid 14  mean return 25.0  best 30.0",
        "  inference running    pid 13  300.0 decisions/s  3.0 per batch  version 20",
        "  actor_000 stepping   pid 20  slot 0  2,500 env steps  150.0/s  return 21.5"
        "  success 0.25  \\x1b[2J 1.23e+04  2 environment faults",
        "  ALARM: the disk is \\x1b[2Jfull",
        "  the learner diverged and was rolled back to its last good checkpoint",
    ]


def test_ended_run_shows_its_outcome_once_and_its_last_figures() -> None:
    text = describe(over("5000 env steps (max_env_steps = 5000)"))
    first, *rest = text.splitlines()
    assert first == "/runs/x: apex_dqn on CartPole-v1, ended: 5000 env steps (max_env_steps = 5000)"
    assert text.count("ended") == 1
    assert rest[:4] == [
        "  env steps 5,000  frames 5,000",
        "  bottleneck: learner: it computes all the time",
        "  learner   down       pid -  step 500  0.0 updates/s  0.0 samples/s  version -1",
        "  replay    down       pid -  5,000 of 10,000 items  0.2 MB  0.0 inserts/s  refused 0",
    ]


def test_stopped_run_shows_how_to_resume_it() -> None:
    first = describe(over(None)).splitlines()[0]
    assert first == ("/runs/x: apex_dqn on CartPole-v1, down; `apex run --resume` continues it")


def test_ending_run_shows_its_outcome_while_its_daemons_drain() -> None:
    ending = run_status(run={"outcome": "0.50 hours", "health": "degraded"})
    assert describe(ending).splitlines()[0] == (
        "/runs/x: apex_dqn on CartPole-v1, ended: 0.50 hours, engine supervisor, up 00:01:10"
    )


@pytest.fixture
def figures(tmp_path: Path) -> ViewFigures:
    """Figures of a run that is observed every ten seconds."""
    return ViewFigures(prepared(tmp_path), map(float, range(0, 1000, 10)).__next__)


def test_live_view_without_a_terminal_is_one_short_line(figures: ViewFigures) -> None:
    for env_steps in (5_000, 7_500):
        figures.update(run_status(run={"env_steps": env_steps, "frames": 4 * env_steps}))
    status = run_status(
        run={"env_steps": 7_500, "frames": 30_000, "health": "healthy"},
        actors=(actor_report(0, mean_return=20.0), actor_report(1, mean_return=23.0)),
    )
    assert figures.line(status) == (
        "00:01:10  30,000 frames (1,000/s)  step 500 (40/s)  return 21.5  best 30.0"
    )
    new = run_status(
        run={"env_steps": 0, "frames": 0, "health": "degraded", "uptime_s": 0.4},
        learner=LearnerSummary(state="starting", pid=11),
        evaluator=EvaluatorSummary(state="running", pid=14),
        actors=(actor_report(0, state="starting", mean_return=None),),
    )
    assert figures.line(new).startswith("00:00:00  degraded: learner starting, actor_000 starting")
    assert figures.line(new).endswith("step 0 (0/s)")
    assert len(figures.line(status)) < 100


def test_live_view_shows_alarms_faults_and_the_reason_of_degraded_first(
    figures: ViewFigures,
) -> None:
    hurt = run_status(
        run={"alarms": ("replay: \x1b[2J is\n\tfull of caf\xe9s",), "health": "degraded"},
        actors=(actor_report(0, env_faults=3), actor_report(1, state="down", pid=None)),
    )
    assert figures.rows(hurt)[:4] == [
        ("[bold red]ALARM", "replay: \\x1b[2J is full of caf\xe9s"),
        ("[bold red]faults", "actor_000 3 environment faults (`apex logs actor_000`)"),
        ("[bold red]degraded", "actor_001 down"),
        ("frames", "5,000"),
    ]
    assert figures.line(hurt).startswith(
        "00:01:10  ALARM: replay: \\x1b[2J is full of caf\xe9s  faults: actor_000 3 environment "
        "faults (`apex logs actor_000`)  degraded: actor_001 down  5,000 frames"
    )


def test_reason_of_degraded_names_four_daemons_and_counts_the_others(figures: ViewFigures) -> None:
    actors = tuple(actor_report(index, state="starting") for index in range(100))
    status = run_status(run={"health": "degraded"}, actors=actors)
    reason = "actor_000 starting, actor_001 starting, actor_002 starting, actor_003 starting"
    assert figures.rows(status)[0] == ("[bold red]degraded", f"{reason}, and 96 more")
