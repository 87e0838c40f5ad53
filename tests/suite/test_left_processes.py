"""A suite with processes of its environments, in a directory whose name has odd characters."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from apex.host.orphans import marked
from tests.support.paths import APEX, ROOT
from tests.support.processes import gone, running
from tests.support.suite import SMALL, Suite

SIMULATOR = ("--set", f"env.id={ROOT}/tests/support/simulator.py:Simulator")
ODD = "a %(x)s %d \"b'c;d#e,f\\g$h\xe9[*]"


@pytest.fixture
def odd(tmp_path: Path) -> Iterator[Suite]:
    """A suite in an odd directory."""
    one = Suite(tmp_path / ODD / "run")
    yield one
    one.end()


def simulators(actor: int) -> set[int]:
    """The processes that an actor's environment has started."""
    found = {pid for pid, mark in marked() if mark.pid == actor}
    return found | {child.pid for child in psutil.Process(actor).children(recursive=True)}


def test_what_actors_start_ends_with_them_in_any_directory(odd: Suite) -> None:
    one_environment = ("--set", "actor.num_envs=1", "--set", "actor.count=1")
    odd.start(*SMALL, *SIMULATOR, *one_environment)
    odd.wait_healthy()
    assert (odd.run.logs / "actor_000.log").exists()  # of supervisord, in that directory
    attach = [*APEX, "actor", "attach", "1", "--run", str(odd.path)]
    with running(attach, stderr=subprocess.PIPE) as launcher:
        odd.wait_for(
            lambda s: (
                [row["state"] for row in s["actors"] if row["env_steps"]] == ["stepping"] * 2
                or (all(row["env_steps"] for row in s["actors"]) and len(s["actors"]) == 2)
            ),
            60.0,
            "both actors step",
        )
        killed = odd.run.living()["actor_000"], odd.run.living()["actor_001"]
        left = [simulators(pid) for pid in killed]
        assert [len(pids) for pids in left] == [3, 3]  # one sleep runs in place of its shell
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        odd.wait_for(lambda s: all(map(gone, left[0] | left[1])), 30.0, "simulators are gone")
        odd.wait_for(lambda s: len(odd.run.living()) >= 5, 60.0, "both actors are back")
        assert odd.apex("stop").returncode == 0
        launcher.wait(timeout=60)
    assert [pid for pid, mark in marked() if mark.run == os.fsencode(odd.run.path)] == []
