"""Gathering a status from daemons that give valid and malformed answers."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from apex.cli.main import main
from apex.daemons.restart_backoff import CrashHistory
from apex.daemons.status.gathering import gather
from apex.daemons.status.reports import ReplaySummary, to_wire
from apex.errors import ExitCode
from apex.runs.directory import RunDirectory
from apex.wire.messages import Status, StatusReply, Welcome
from apex.wire.server import Server
from apex.wire.sockets import Poller
from tests.support.services import prepared, service_of
from tests.support.statuses import replay_report


@contextmanager
def replay_that_answers(run: RunDirectory, status: dict[str, object]) -> Iterator[None]:
    """A process that holds the replay server's lock and answers STATUS with a given map."""
    facts, ended = run.facts(), threading.Event()
    server = Server(
        run.endpoints().of("replay.sample"), facts.run_id, facts.schema.hash,
        {"operator": (Status,)}, lambda peer: Welcome(instance=1),
    )  # fmt: skip

    def serve() -> None:
        poller = Poller(server)
        while not ended.is_set():
            poller.wait(0.02)
            for request in server.receive():
                server.send(request.peer.identity, StatusReply(status=status))
        server.close()

    thread = threading.Thread(target=serve)
    with service_of(run, "replay"):
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def test_valid_answer_is_shown_with_the_process_id_of_the_lock(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    with replay_that_answers(run, to_wire(replay_report(items=17))):
        status = gather(run)
    assert status.replay == replay_report(items=17, pid=status.replay.pid)
    assert status.replay.pid != 12 and status.run.alarms == ()
    assert (status.run.health, status.run.bottleneck) == ("degraded", "down: learner")


@pytest.mark.parametrize("newer", ["", '{"mean_ret'], ids=["rotated", "cut off"])
def test_last_evaluation_is_shown_without_a_learner(tmp_path: Path, newer: str) -> None:
    run = prepared(tmp_path)
    run.metrics.mkdir(exist_ok=True)
    rows = [{"mean_return": mean, "best_mean_return": 30.0} for mean in (30.0, 25.0)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run.metrics / "evaluator.jsonl.1").write_text(text)
    (run.metrics / "evaluator.jsonl").write_text(newer)
    evaluator = gather(run).evaluator
    assert (evaluator.mean_return, evaluator.best_mean_return) == (25.0, 30.0)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (to_wire(replay_report()) | {"items": "many"}, "Expected `int`, got `str` - at `$.items`"),
        ({}, "Object missing required field `state`"),
    ],
    ids=["another type", "nothing"],
)
def test_malformed_answer_is_an_alarm_that_says_what_is_wrong(
    tmp_path: Path, answer: dict[str, object], reason: str
) -> None:
    run = prepared(tmp_path)
    with replay_that_answers(run, answer):
        status = gather(run)
        shown = CliRunner().invoke(main, ["status", "--run", str(run.path)])
    expected = (
        f"replay: the reply to STATUS is not a valid ReplayReport: {reason}; "
        "install the same version of apex on both sides"
    )
    assert status.run.alarms == (expected,)
    capacity = run.config().replay.capacity
    assert status.replay == ReplaySummary(
        state="starting", pid=status.replay.pid, capacity=capacity
    )
    assert shown.exit_code == 3 and f"  ALARM: {expected}\n" in shown.output


def test_logs_escape_control_characters(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    run.logs.mkdir(exist_ok=True)
    (run.logs / "learner.log").write_text("caf\xe9\n\x9b2Jgone\n", encoding="utf-8")
    shown = CliRunner().invoke(main, ["logs", "learner", "--run", str(run.path)])
    assert shown.output == "caf\xe9\n\\x9b2Jgone\n"


def test_daemon_that_hangs_in_a_row_is_an_alarm_while_the_run_goes_on(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    reason = "its work loop hung for 60 s in the reset of environment 3; its log has the stacks"
    for _ in range(2):
        history = CrashHistory(run.crash_file("actor_000"), 8)
        history.record_start()
        history.record_failure(reason, ExitCode.HANG)
        path = run.crash_file("actor_000")
        os.utime(path, (path.stat().st_mtime + 61.0,) * 2)
    assert gather(run).run.alarms == (), "the run is over"
    with service_of(run, "actor_000"):
        CrashHistory(run.crash_file("actor_000"), 8).record_start()
        assert gather(run).run.alarms == (f"actor_000 hung 2 times in a row: {reason}",)
