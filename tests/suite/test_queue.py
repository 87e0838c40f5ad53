"""A queue as the table of a real suite: back-pressure, and no item served twice."""

from __future__ import annotations

import json
import os
import signal

from tests.support.suite import CALM, Suite

IMPALA = (
    "--preset", "cartpole-impala", *CALM, "--set", "evaluator.enabled=false",
    "--set", "actor.num_envs=4", "--set", "learner.metrics_period_s=1",
)  # fmt: skip
MOST_ITEMS = 16 + 2 * 16 + 1
"""`min_size` plus the tolerance: batch_size x prefetch + chunk_length."""


def test_stopped_learner_stops_the_actors_and_a_killed_queue_does_not_serve_items_twice(
    suite: Suite,
) -> None:
    suite.start(*IMPALA)
    first = suite.wait_healthy()
    learner = first["learner"]["pid"]
    os.kill(learner, signal.SIGSTOP)
    try:
        full = suite.wait_for(
            lambda s: s["replay"]["waiting_inserts"] >= 2 and s["replay"]["items"] >= 16,
            30.0,
            "both actors wait for room in the queue",
        )
        assert full["replay"]["items"] <= MOST_ITEMS
        before = full["replay"]
        os.kill(first["replay"]["pid"], signal.SIGKILL)
        back = suite.wait_for(
            lambda s: (
                s["replay"]["pid"] not in (None, first["replay"]["pid"])
                and s["replay"].get("waiting_inserts", 0) >= 2
            ),
            30.0,
            "the replay server is back, and actors wait again",
        )["replay"]
        # Nothing was served meanwhile: what was there is there, and nothing that had been served.
        assert back["items"] <= MOST_ITEMS + 4
        assert back["inserted"] - back["sampled"] <= back["items"]
        assert back["inserted"] >= before["inserted"] and back["damaged"] == 0
    finally:
        os.kill(learner, signal.SIGCONT)
    suite.wait_for(
        lambda s: (
            s["run"]["health"] == "healthy"
            and s["learner"]["pid"] == learner
            and s["learner"]["learner_step"] > first["learner"]["learner_step"] + 50
        ),
        30.0,
        "training goes on",
    )
    stopped_at = full["learner"]["learner_step"]
    suite.wait_for(
        lambda s: off_policyness(suite, stopped_at), 20.0, "the learner logs how old its items are"
    )
    newest = off_policyness(suite, stopped_at)[-1]
    assert 0.0 <= newest["item_staleness"] < 50.0 and 0.5 < newest["rho_mean"] < 2.0


def off_policyness(suite: Suite, since_step: int) -> list[dict]:
    """The learner's metrics of off-policy data after a step."""
    lines = map(json.loads, (suite.run.metrics / "learner.jsonl").read_text().splitlines())
    return [line for line in lines if "rho_mean" in line and line["step"] > since_step]
