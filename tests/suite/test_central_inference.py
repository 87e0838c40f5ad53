"""Central inference in a whole suite: when one process fails, the others continue."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.fixtures.texts import check_status_keys
from tests.support.suite import CALM, Suite

CENTRAL = (
    "--preset", "cartpole-seed", "--actors", "2", *CALM, "--set", "replay.min_size=200",
    "--set", "actor.num_envs=2", "--set", "replay.samples_per_insert=4",
    "--set", "evaluator.enabled=false",
)  # fmt: skip


def rows(status: dict, *names: str) -> list:
    return [[row[name] for name in names] for row in status["actors"]]


@pytest.fixture(scope="module", params=["supervisor", "local"])
def suite(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A suite shared by the tests of this file, one per engine."""
    one = Suite(tmp_path_factory.mktemp(request.param) / "run")
    try:
        one.start(*CENTRAL, "--engine", request.param)
        yield one
    finally:
        one.end()


def test_inference_server_restarts_within_ten_seconds_when_killed(
    suite: Suite,
) -> None:
    first = suite.wait_healthy()
    assert first["inference"]["state"] == "running" and first["inference"]["actors"] == 2
    for row in first["actors"]:
        maps = Path(f"/proc/{row['pid']}/maps").read_text()
        assert "libzmq" in maps and "libtorch" not in maps, "an actor needs no torch"
    check_status_keys(suite.status(), "central")
    killed = first["inference"]["pid"]
    os.kill(killed, signal.SIGKILL)
    at = time.monotonic()
    back = suite.wait_for(
        lambda s: (
            s["inference"]["state"] == "running"
            and s["inference"]["pid"] not in (None, killed)
            and s["inference"]["actors"] == 2
            and s["inference"]["decisions_per_s"] > 0
        ),
        30.0,
        "the inference server decides for both actors again",
    )
    others = max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))
    assert time.monotonic() - at <= 10.0 * others, "longer in proportion on a busy machine"
    assert [r[0] for r in rows(back, "pid")] == [r[0] for r in rows(first, "pid")]
    suite.wait_for(
        lambda s: (
            s["run"]["env_steps"] > back["run"]["env_steps"]
            and s["learner"]["learner_step"] > back["learner"]["learner_step"]
            and s["replay"]["inserted"] > back["replay"]["inserted"]
            and s["run"]["health"] == "healthy"
        ),
        30.0,
        "training goes on",
    )


def test_other_actors_continue_when_one_hangs_or_dies(suite: Suite) -> None:
    first = suite.wait_healthy()
    (zero, one) = (row["pid"] for row in first["actors"])
    os.kill(zero, signal.SIGSTOP)
    try:
        stopped = suite.status()
        suite.wait_for(
            lambda s: s["actors"][1]["env_steps"] > stopped["actors"][1]["env_steps"] + 200,
            20.0,
            "the other actor goes on",
        )
    finally:
        os.kill(zero, signal.SIGCONT)
    os.kill(one, signal.SIGKILL)
    suite.wait_for(
        lambda s: (
            s["actors"][1]["pid"] not in (None, one)
            and s["actors"][1]["state"] in ("stepping", "waiting_for_actions", "waiting_for_credit")
            and s["run"]["health"] == "healthy"
        ),
        30.0,
        "the killed actor is back and asks for actions",
    )
    done = suite.apex("actor", "restart", "0")
    assert done.returncode == 0, done.stderr
    suite.wait_for(
        lambda s: s["actors"][0]["pid"] not in (None, zero) and s["run"]["health"] == "healthy",
        30.0,
        "the restarted actor steps again",
    )
