"""Whole suites of real processes: start, watch, kill, restart, attach, resume, stop."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apex.daemons.restart_backoff import age_s
from apex.daemons.status.gathering import STARTING_S, gather
from apex.errors import ExitCode
from apex.host import hardware
from apex.runs.engine_record import living_engine
from tests.fixtures.texts import check_status_keys
from tests.support.paths import APEX
from tests.support.processes import running
from tests.support.suite import EVALUATED, SMALL, Suite
from tests.support.waiting import wait_until


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A suite under supervisord, shared by the next tests; each leaves it healthy.

    The last of them stops it. Other runs of this user may have claimed all cores, so the suite
    uses another runtime directory.
    """
    folder = tmp_path_factory.mktemp("shared")
    one = Suite(folder / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder))
        try:
            one.start(*SMALL, *EVALUATED, "--set", "learner.metrics_period_s=1.0")
            yield one
        finally:
            one.end()


def test_training_thread_has_a_core_that_no_other_thread_of_the_run_uses(shared: Suite) -> None:
    status = shared.wait_healthy()
    engine = living_engine(shared.run)
    assert engine is not None
    learner, available = status["learner"]["pid"], os.sched_getaffinity(0)
    training = os.sched_getaffinity(learner)  # of its first thread, which trains
    alone = hardware.cores() == len(available) > 1
    assert training <= available and len(training) == (1 if alone else len(available))
    threads = [int(t.name) for t in Path(f"/proc/{learner}/task").iterdir()]
    away = available - training if alone else available
    others = [pid for name, pid in shared.run.living().items() if name != "learner"]
    for thread in (*threads, *others, engine.pid):
        assert thread == learner or os.sched_getaffinity(thread) == away


def test_logs_metrics_and_tensorboard_files_are_written(shared: Suite) -> None:
    shared.wait_healthy()

    def trained() -> list[dict[str, object]]:
        """Records that were written after the first update."""
        lines = (shared.run.metrics / "learner.jsonl").read_text().splitlines()
        return [record for record in map(json.loads, lines) if "loss" in record]

    record = wait_until(trained, 30.0, "learner metrics")[-1]
    assert {"loss", "td_error", "q_mean", "item_staleness", "updates_per_s"} <= record.keys()
    wait_until(
        lambda: list((shared.run.metrics / "tensorboard").glob("learner/events.*")),
        30.0,
        "TensorBoard files",
    )
    shown = shared.apex("logs", "learner", "-n", "3")
    assert len(shown.stdout.splitlines()) == 3
    time, level, process = shown.stdout.splitlines()[0].split()[:3]
    assert time.endswith("Z") and level == "INFO" and process == "learner"
    assert shared.apex("logs", "nobody").returncode == 2


def test_actors_restart_and_attach_while_the_learner_continues(shared: Suite) -> None:
    before = shared.wait_healthy()
    done = shared.apex("actor", "restart", "1")
    assert done.returncode == 0, done.stderr
    with running(
        [*APEX, "actor", "attach", "2", "--run", str(shared.path)], stderr=subprocess.DEVNULL
    ) as attached:
        wider = shared.wait_for(
            lambda s: len(s["actors"]) == 4 and s["run"]["health"] == "healthy",
            60.0,
            "two attached actors at work",
        )
        assert [row["actor_id"] for row in wider["actors"]] == [
            "actor_000", "actor_001", "actor_002", "actor_003",
        ]  # fmt: skip
        assert sorted(row["slot"] for row in wider["actors"]) == [0, 1, 2, 3]
        assert wider["actors"][1]["pid"] != before["actors"][1]["pid"]
        assert wider["learner"]["pid"] == before["learner"]["pid"]
        assert wider["learner"]["learner_step"] > before["learner"]["learner_step"]
        attached.send_signal(signal.SIGINT)
        assert attached.wait(timeout=30) == 0
        shared.wait_for(lambda s: len(s["actors"]) == 2, 10.0, "the attached actors are gone")


def test_stopped_actor_is_suspect_and_stopped_learner_is_silent_within_seconds(
    shared: Suite,
) -> None:
    shared.wait_healthy()
    actor, learner = shared.run.pid("actor_000"), shared.run.pid("learner")
    assert actor is not None and learner is not None
    # Its process answers pings all the same if only its loop stands still: heartbeats come from it.
    os.kill(actor, signal.SIGSTOP)
    try:
        suspect = wait_until(
            lambda: (row := gather(shared.run).actors[0]).state == "suspect" and row,
            20.0,
            "the actor is suspect",
        )
        # By the learner's own clock: suspect from 3 s of silence on, and not before.
        assert 3.0 <= suspect.heartbeat_age_s < 3.0 + 5.0
        assert gather(shared.run).run.health == "degraded"
    finally:
        os.kill(actor, signal.SIGCONT)
    shared.wait_healthy()
    wait_until(lambda: age_s(shared.run.crash_file("learner")) > STARTING_S, 40.0, "an age")
    os.kill(learner, signal.SIGSTOP)
    try:
        found = wait_until(
            lambda: (s := gather(shared.run)).learner.state == "silent" and s,
            20.0,
            "the learner is silent",
        )
        assert found.run.health == "degraded" and found.learner.pid == learner
    finally:
        os.kill(learner, signal.SIGCONT)


def test_second_suite_on_tcp_loopback_runs_beside_the_first(
    shared: Suite, suite: Suite, small: tuple[str, ...], tmp_path: Path
) -> None:
    endpoints = tmp_path / "tcp.toml"
    endpoints.write_text(
        "insecure_loopback = true\n"
        '[replay]\ninsert = "tcp://127.0.0.1:*"\nsample = "tcp://127.0.0.1:*"\n'
        '[learner]\nparams = "tcp://127.0.0.1:*"\n'
    )
    suite.start(*small, "--actors", "1", "--endpoints", str(endpoints), "--engine", "local")
    one, two = shared.wait_healthy(90.0), suite.wait_healthy(90.0)
    assert one["learner"]["pid"] != two["learner"]["pid"]
    assert "tcp://127.0.0.1:" in suite.run.endpoints_file.read_text()
    assert shared.run.facts().run_id != suite.run.facts().run_id


def kill_and_wait_for_training(suite: Suite, daemon: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Kill a daemon and wait until training goes on; returns the statuses before and after."""
    before = suite.status()
    pid = before[daemon]["pid"]
    os.kill(pid, signal.SIGKILL)
    after = suite.wait_for(
        lambda s: (
            s[daemon]["pid"] not in (None, pid)
            and s["run"]["health"] == "healthy"
            and s["learner"]["state"] == "training"
        ),
        60.0,
        f"training goes on after {daemon} was killed",
    )
    return before, after


def test_supervisord_suite_recovers_from_kills_and_stops_cleanly(shared: Suite) -> None:
    """The last test of the shared suite.

    test_central_inference.py kills daemons of the launcher.
    """
    before = shared.wait_healthy()
    assert before["run"]["engine"] == "supervisor"
    log = shared.run.logs / "supervisord.log"
    earlier = log.read_text().count("not expected")
    daemons = shared.run.living().values()
    assert [os.getsid(pid) for pid in daemons] == list(daemons), "each leads a session"
    assert shared.apex("status").returncode == 0
    check_status_keys(shared.status(), "local")

    killed = before["actors"][0]["pid"]
    os.kill(killed, signal.SIGKILL)
    shared.wait_for(
        lambda s: (
            s["actors"][0]["pid"] not in (None, killed)
            and s["actors"][0]["state"] in ("stepping", "waiting_for_credit")
        ),
        30.0,
        "the killed actor steps again",
    )
    kill_and_wait_for_training(shared, "replay")
    before, after = kill_and_wait_for_training(shared, "learner")
    assert after["learner"]["param_version"] > before["learner"]["param_version"]
    assert shared.status()["learner"]["learner_step"] > 0

    kills = log.read_text().count("not expected") - earlier
    done = shared.apex("stop")
    assert done.returncode == 0, done.stderr
    assert shared.run.living() == {}
    after_stop = log.read_text().count("not expected") - earlier
    assert after_stop == kills == 3, "one for each kill, none for a stop"
    assert shared.apex("status").returncode == 4
    down = shared.status()
    assert down["replay"]["items"] > 0 and not down["run"]["bottleneck"].startswith("down")
    assert [row["pid"] for row in down["actors"]] == [None, None]
    assert down["learner"]["state"] == down["replay"]["state"] == "down"


def test_no_process_is_left_when_the_launcher_is_killed(
    suite: Suite, small: tuple[str, ...]
) -> None:
    suite.start(*small, "--engine", "local")
    suite.wait_healthy()
    record = living_engine(suite.run)
    assert record is not None
    os.kill(record.pid, signal.SIGKILL)
    wait_until(lambda: not suite.processes(), 40.0, "every process of the run is gone")
    assert suite.run.living() == {}


def test_attached_actor_waits_then_exits_when_supervisord_is_killed(
    suite: Suite, small: tuple[str, ...]
) -> None:
    suite.start(*small, "--set", "actor.learner_patience_s=4")
    suite.wait_healthy()
    with running(
        [*APEX, "actor", "attach", "--run", str(suite.path)], stderr=subprocess.PIPE, text=True
    ) as attached:
        suite.wait_for(lambda s: len(s["actors"]) == 3, 60.0, "an attached actor")
        record = living_engine(suite.run)
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        _, errors = attached.communicate(timeout=150)
        assert attached.returncode == ExitCode.PEERS_GONE, errors
        wait_until(lambda: not suite.processes(), 40.0, "every process of the run is gone")
        assert suite.run.living() == {}
        assert (
            "no message from the learner for 4 s" in (suite.run.logs / "actor_002.log").read_text()
        )


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Suite]:
    """A stopped run with more than 100 learner steps."""
    one = Suite(tmp_path_factory.mktemp("learned") / "run")
    try:
        one.start(*SMALL)
        one.wait_for(lambda s: s["learner"]["learner_step"] > 100, 60.0, "100 learner steps")
        assert one.apex("stop").returncode == 0
        yield one
    finally:
        one.end()


def test_resume_continues_from_the_learner_step_of_the_checkpoint(learned: Suite) -> None:
    stopped = learned.status()
    saved = json.loads(
        max(learned.run.checkpoints.glob("step_*/manifest.json")).read_text(encoding="utf-8")
    )
    assert stopped["learner"]["learner_step"] == saved["learner_step"] > 100, learned.logs()
    learned.start("--resume", "--engine", "local")
    resumed = learned.wait_healthy()
    assert resumed["learner"]["learner_step"] >= saved["learner_step"]
    assert resumed["run"]["env_steps"] >= saved["env_steps"]
    assert resumed["learner"]["param_version"] > saved["param_version"]
    log = (learned.run.logs / "learner.log").read_text()
    assert f"at learner step {saved['learner_step']}," in log
    assert learned.apex("stop").returncode == 0


def test_diverged_learner_rolls_back_once_then_gives_up_and_keeps_its_good_checkpoint(
    learned: Suite,
) -> None:
    good = max(learned.run.checkpoints.glob("step_*")).name
    learned.start("--resume", "--set", "algorithm.learning_rate=1e30")
    learned.wait_for(lambda s: s["learner"]["state"] == "down", 60.0, "the learner gave up")
    log = (learned.run.logs / "learner.log").read_text()
    assert f"is not finite: rolled back to {good}" in log
    assert "is not finite, again, after one rollback" in log
    assert max(learned.run.checkpoints.glob("step_*")).name == good
    stays_down = wait_until(
        lambda: "exit status 79" in (learned.run.logs / "supervisord.log").read_text(), 30.0, "79"
    )
    assert stays_down and learned.status()["learner"]["pid"] is None
    assert learned.apex("stop").returncode == 0
    learned.start("--resume", "--set", "algorithm.learning_rate=5e-4")
    resumed = learned.wait_healthy()
    assert resumed["learner"]["learner_step"] >= int(good.removeprefix("step_"))
    assert learned.apex("stop").returncode == 0


def test_run_ends_at_max_env_steps_and_the_status_says_so(
    suite: Suite, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = ("--set", "run.max_env_steps=2000")
    done = suite.apex("run", *small, *EVALUATED, *limit, timeout_s=300.0)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert re.fullmatch(r"the run has ended: \d+ env steps \(max_env_steps = 2000\)", last)
    # On a busy machine daemons are late, and the line says which.
    form = r"\d\d:\d\d:\d\d  (degraded: [\w, ]+  )?\d+ frames .{0,80}"
    assert lines and all(re.fullmatch(form, line) for line in lines), lines
    wait_until(lambda: not suite.processes(), 30.0, "its processes are gone")

    status = suite.status()
    outcome = status["run"]["outcome"]
    assert last == f"the run has ended: {outcome}"
    assert status["run"]["env_steps"] >= 2000
    assert status["replay"]["items"] >= 200 and status["replay"]["bytes"] > 0
    assert sum(row["env_steps"] for row in status["actors"]) >= 2000
    assert status["run"]["bottleneck"].partition(":")[0] in ("learner", "actors", "data path")
    check_status_keys(status, "down")
    shown = suite.apex("status")
    assert shown.returncode == ExitCode.DOWN and shown.stdout.count(outcome) == 1
    monkeypatch.setenv("APEX_RUNS", str(suite.path.parent))
    listed = subprocess.run([*APEX, "runs", "list"], capture_output=True, text=True, timeout=150)
    assert re.search(rf"{suite.path.name} .* ended ", listed.stdout)
    _, stop, stopping = (
        (suite.run.logs / "supervisord.log").read_text().partition("received SIGTERM")
    )
    assert stop and "not expected" not in stopping
