"""Long calls into environments: what the watchdog and a waiting user learn of them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from apex.daemons.watchdog import Watchdog
from apex.envs.activity import Activity, announce
from apex.errors import ExitCode
from tests.support.environments import Counted, own


class Seconds:
    """A clock for threads that count their own wake-ups: each calls `at` with the second's number.

    Args:
        at: what happens in each second; returns True to end the thread's work.
    """

    def __init__(self, at: Callable[[int], bool | None]) -> None:
        self.passed = 0
        self._at = at

    def wait(self, seconds: float) -> bool:
        assert seconds == 1.0 and self.passed < 1000, "the thread does not end"
        self.passed += 1
        return bool(self._at(self.passed))


def hang(limit_s: float, activity: Activity, at: Callable[[int], bool | None]) -> tuple[int, str]:
    """Seconds after which a watchdog ends its process, and the reason that it records."""
    reasons: list[tuple[str, int]] = []
    codes: list[int] = []
    seconds = Seconds(at)
    watchdog = Watchdog(
        limit_s, lambda: None, lambda *reason: reasons.append(reason), activity,
        leave=codes.append, sleep=seconds.wait,
    )  # fmt: skip
    watchdog.watch()
    assert codes == [ExitCode.HANG] and reasons[0][1] == ExitCode.HANG
    return seconds.passed, reasons[0][0]


def test_resets_one_after_the_other_are_progress_and_one_that_hangs_is_named():
    activity = Activity()

    def at(second: int) -> None:
        if second % 10 == 1 and second < 80:  # eight environments of ten seconds each
            activity.begin("reset", second // 10)

    seconds, reason = hang(60.0, activity, at)
    assert seconds == 71 + 60
    assert reason.startswith("its work loop hung for 60 s in the reset of environment 7; ")
    assert "set run.watchdog_s above it" in reason and "num_envs" not in reason


def test_one_call_for_all_environments_that_hangs_names_their_number_as_well():
    activity = Activity()
    activity.begin("step")
    _, reason = hang(5.0, activity, lambda second: None)
    assert "in the step of all environments" in reason and "lower actor.num_envs" in reason


def test_hang_outside_of_environments_does_not_accuse_them():
    activity = Activity()
    activity.begin("step", 1)
    activity.end()
    assert hang(5.0, activity, lambda second: None) == (5, "its work loop hung for 5 s")


def test_watchdog_warns_once_at_half_of_its_limit(caplog):
    activity = Activity()
    activity.begin("reset", 2)
    hang(60.0, activity, lambda second: None)
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said == (
        "waiting for reset of environment 2: 30 s; at 60 s (run.watchdog_s) this process ends "
        "itself"
    )


@pytest.mark.parametrize(
    ("each_call", "expected"),
    [
        (True, ["reset of environment 1: 5 s", "reset of environment 1: 10 s"]),
        (False, ["making of environment 0: 5 s", "reset of environment 1: 10 s"]),
    ],
)
def test_waiting_is_announced_after_5_s_and_then_less_often(caplog, each_call, expected):
    activity = Activity()

    def at(second: int) -> bool:
        if second == 1:
            activity.begin("making", 0)
        if second == 6:
            activity.begin("reset", 1)
        if second == 18:
            activity.end()
        return second == 40

    announce(activity, Seconds(at).wait, each_call)
    assert [record.getMessage() for record in caplog.records] == [
        f"waiting for {line}" for line in expected
    ]


def test_calls_are_noted_with_their_environment_and_the_last_one_ends():
    activity, seen = Activity(), []

    class Noted(Counted):
        length = 1

        def __init__(self) -> None:
            super().__init__()
            seen.append(activity.describe())

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            seen.append(activity.describe())
            return super().reset(seed=seed)

        def step(self, action: Any) -> Any:
            seen.append(activity.describe())
            return super().step(action)

        def close(self) -> None:
            seen.append(activity.describe())

    environments = own(Noted, activity=activity)
    environments.reset(0)
    environments.step(np.zeros(2, np.int64))
    environments.step(np.zeros(2, np.int64))
    environments.close()
    calls = ("making", "reset", "step", "reset", "close")
    assert seen == [f"{call} of environment {env}" for call in calls for env in (0, 1)]
    assert activity.describe() == ""


def test_heartbeats_may_be_sent_before_an_environment_is_made_or_reset():
    beats: list[int] = []
    activity = Activity(lambda: beats.append(activity.begun))
    environments = own(Counted, activity=activity)
    assert beats == [1, 2]
    environments.reset(0)
    assert len(beats) == 5  # all of them, then each
    environments.step(np.zeros(2, np.int64))
    assert len(beats) == 5
    environments.close()
