"""Processes that a daemon has started end with it, whatever ended the daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apex.doctor.processes import check_left
from apex.host.orphans import end_left, mark_of, marked
from tests.support.findings import only
from tests.support.paths import ROOT
from tests.support.processes import finished, gone, running
from tests.support.waiting import wait_until

DAEMON = """
import json, os, subprocess, sys, time
from pathlib import Path
from apex.host.orphans import mark_children
mark_children(Path(sys.argv[1]))
child = subprocess.Popen(["sleep", "4242"], start_new_session=True)
deaf = subprocess.Popen(["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"])
bare = subprocess.Popen(["/bin/sleep", "4244"], env={})
forked = os.fork()
if forked == 0:
    time.sleep(4245)
shell = subprocess.run("sleep 4243 >/dev/null & echo $!", shell=True, stdout=subprocess.PIPE)
started = [child.pid, deaf.pid, bare.pid, forked, int(shell.stdout)]
print(json.dumps(started), flush=True)
time.sleep(4246)
"""
"""A daemon that starts five processes, of which the last is an orphan at once."""

ENGINE = """
import json, os, subprocess, sys, time
from apex.host.orphans import Orphans
def start():
    return subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], start_new_session=True,
                            stdout=subprocess.PIPE)
children = []
orphans = Orphans(lambda: {child.pid for child in children})
children += [start(), start()]
started = [json.loads(child.stdout.readline()) for child in children]
children[0].kill()
children[0].wait()
orphans.daemon_ended()
deadline = time.monotonic() + 60
def alive(pids):
    orphans.end_lost()
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]
while alive(started[0]) and time.monotonic() < deadline:
    time.sleep(0.02)
others = len(alive(started[1]))
children[1].kill()
children[1].wait()
orphans.end_all()
left = [pid for pid in sum(started, []) if os.path.exists(f"/proc/{pid}")]
print(json.dumps([alive(started[0]), others, left]))
"""
"""An engine with two daemons, of which one is killed, and later the other."""


def test_what_a_killed_daemon_has_started_is_ended_and_nothing_else(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENGINE, DAEMON, str(tmp_path)]
    done = finished(command, 60.0, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[], 5, []], done.stderr


def test_what_daemons_without_an_engine_leave_is_found_by_its_mark(tmp_path: Path) -> None:
    command = [sys.executable, "-c", DAEMON, str(tmp_path / "a run")]
    unmarked = []
    with running(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as daemon:
        child, deaf, bare, forked, _ = pids = json.loads(daemon.stdout.readline())
        unmarked = [bare, forked]
        mark = mark_of(child)
        assert mark is not None and mark.pid == daemon.pid and mark.is_alive
        assert mark.run == os.fsencode(tmp_path / "a run")
        assert end_left(tmp_path / "a run") == []
    try:
        left = [(pid, m) for pid, m in marked() if m == mark]
        found = only(check_left(left))
        assert found.state == "problem" and f"pid {child} (sleep 4242)" in found.found
        assert end_left(tmp_path / "another run") == []
        os.kill(deaf, 9)
        assert {child, pids[-1]} <= set(end_left(tmp_path / "a run"))
        wait_until(lambda: all(gone(pid) for pid in (child, pids[-1])))
    finally:
        for pid in unmarked:
            os.kill(pid, 9)


@pytest.mark.parametrize("environment", [b"", b"APEX_DAEMON=", b"APEX_DAEMON=1 x y"])
def test_process_without_a_valid_mark_has_none(environment: bytes) -> None:
    name, _, value = environment.partition(b"=")
    env = {name: value} if name else {}
    with running(["/bin/sleep", "60"], env=env) as process:
        assert mark_of(process.pid) is None


EARLIER = """
import os, subprocess
from pathlib import Path
from apex.host.orphans import Orphans, ending_children
earlier = subprocess.Popen(["sleep", "4247"], start_new_session=True, env={"APEX_DAEMON": "1 1 x"})
orphans = Orphans(tuple)
later = subprocess.Popen(["sleep", "4248"], start_new_session=True)
orphans.end_all()
with ending_children(Path("run")):
    last = subprocess.Popen(["sleep", "4249"])
    os.environ.clear()
print(earlier.poll(), later.poll() is not None, last.poll() is not None, flush=True)
earlier.kill()
"""


def test_child_from_before_an_engine_or_a_command_is_left_alone() -> None:
    done = finished([sys.executable, "-c", EARLIER], 60.0, cwd=ROOT)
    assert done.stdout.split() == ["None", "True", "True"], done.stderr
