"""`apex doctor`: it finds problems that a test creates, and its remedies fix them."""

from __future__ import annotations

import json
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from apex.doctor import processes
from apex.doctor import run_directories as runs
from apex.errors import ExitCode
from apex.launch.open_files import may_raise_limits
from apex.launch.prepare import prepare_run, preset_config
from apex.runs import engine_record
from apex.wire.curve_keys import make_folder
from tests.support.findings import of_state, only
from tests.support.paths import APEX, ROOT
from tests.support.processes import running
from tests.support.services import prepared
from tests.support.suite import Suite
from tests.support.waiting import wait_until

BIN = Path(sys.executable).parent


def doctor(*arguments: str, runs: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `apex doctor ARGUMENTS`; `runs` is the directory of all runs."""
    return subprocess.run(
        [*APEX, "doctor", *arguments],
        capture_output=True, text=True, timeout=90,
        env={**os.environ, "APEX_RUNS": str(runs)}, **options,
    )  # fmt: skip


def dead_pid() -> int:
    """Process id of a process that has exited."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait(timeout=30)
    return done.pid


@contextmanager
def helper(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has run `code` and then waits until it is killed."""
    command = [sys.executable, "-c", f"{code}\nprint('ready', flush=True)\nsys.stdin.read()"]
    with subprocess.Popen(
        [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_doctor_lists_every_check_and_exits_0_when_the_machine_is_healthy(tmp_path: Path) -> None:
    done = doctor("--preset", "cartpole", "--json", runs=tmp_path)
    findings = json.loads(done.stdout)
    assert {name for one in findings for name in one} == {
        "check", "state", "found", "expected", "remedy",
    }  # fmt: skip
    checks = {one["check"] for one in findings}
    assert checks >= {
        "python", "packages", "files", "torch", "environment", "cores", "memory", "disk",
        "open files", "threads", "runs", "clock", "socket paths",
    }  # fmt: skip
    # Other programs on this machine may leave problems while the test runs: ignore those.
    problems = [one for one in findings if one["state"] == "problem"]
    assert [one for one in problems if not one["check"].startswith(("run ", "lost "))] == []
    assert done.returncode == (ExitCode.DEGRADED if problems else 0)
    assert all(one["remedy"] for one in problems)


def test_doctor_reports_wrong_usage_in_one_line(tmp_path: Path) -> None:
    unknown = doctor("--preset", "pang", runs=tmp_path)
    assert unknown.returncode == ExitCode.CONFIGURATION
    assert unknown.stderr.startswith("apex: no preset 'pang'") and unknown.stdout == ""
    both = doctor("--preset", "pong", "--run", "x", runs=tmp_path)
    assert both.returncode == ExitCode.USAGE and both.stderr.count("\n") == 1


def test_doctor_reports_a_low_limit_of_open_files(tmp_path: Path) -> None:
    run = prepare_run(tmp_path / "run", preset_config("cartpole", ["actor.count=2000"]))

    def low() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))

    done = doctor("--run", str(run.path), "--json", runs=tmp_path, preexec_fn=low)
    assert done.returncode == ExitCode.DEGRADED, done.stderr
    found = {one["check"]: one for one in json.loads(done.stdout)}["open files"]
    assert found["state"] == "problem"
    assert "too few for replay, learner, supervisord" in found["found"]
    # 64 and 4 besides one for each actor; supervisord: 6, and 3 for each of 2003 daemons.
    assert found["expected"] == "actor_000 64, replay 2,068, learner 2,068, supervisord 6,015"
    assert found["remedy"].startswith("`ulimit -n 6015`")


def test_limit_of_open_files_is_raised_as_far_as_needed_or_refused() -> None:
    program = (
        "import resource, sys\n"
        "from apex.errors import RunError\n"
        "from apex.launch.open_files import raise_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (40, 69))\n"
        "raise_limit({'actor_000': 64})\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))\n"
        "try:\n"
        "    raise_limit({'actor_000': 64, 'replay': 70})\n"
        "except RunError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    raised, refused = done.stdout.splitlines()
    assert raised == "(64, 69)"
    if not may_raise_limits():
        assert refused.startswith(
            "the hard limit of open files is 69, but this run needs replay 70"
        )


# Runs


def test_lock_of_a_dead_process_is_a_note_unless_another_process_holds_it(
    tmp_path: Path,
) -> None:
    run, gone = prepared(tmp_path), dead_pid()
    run.lock_file("learner").write_text(str(gone))
    assert of_state(runs.check_run(run), "problem") == []
    note = only(runs.check_locks(run))
    assert note.state == "note" and f"learner (pid {gone})" in note.found
    hold = "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX)"
    with helper(hold, str(run.lock_file("learner"))) as holder:
        (held,) = of_state(runs.check_run(run), "problem")
        assert f"names pid {gone}, which is gone" in held.found
        assert held.remedy == f"kill {holder.pid}"
        subprocess.run(held.remedy, shell=True, check=True)
        assert holder.wait(timeout=30) == -signal.SIGTERM
    assert of_state(runs.check_run(run), "problem") == []


def test_port_in_use_is_reported_with_the_process_that_uses_it(tmp_path: Path) -> None:
    endpoints = tmp_path / "endpoints.toml"
    endpoints.write_text(
        "insecure_loopback = true\n[replay]\n"
        'insert = "tcp://127.0.0.1:*"\nsample = "tcp://127.0.0.1:*"\n'
        '[learner]\nparams = "tcp://127.0.0.1:*"\n'
    )
    run = prepare_run(tmp_path / "run", preset_config("cartpole", []), endpoints)
    assert of_state(runs.check_run(run), "problem") == []
    address = run.endpoints().learner.params
    listen = (
        "import socket, sys; s = socket.socket(); "
        "s.bind(('127.0.0.1', int(sys.argv[1]))); s.listen()"
    )
    with helper(listen, address.rpartition(":")[2]) as thief:
        (taken,) = of_state(runs.check_run(run), "problem")
        assert f"learner.params: {address} cannot be bound" in taken.found
        assert f"pid {thief.pid}" in taken.found and str(run.endpoints_file) in taken.remedy
    assert of_state(runs.check_run(run), "problem") == []


def test_orphans_of_a_killed_engine_are_reported_and_the_remedy_ends_them(
    suite: Suite, small: tuple[str, ...]
) -> None:
    suite.start(*small)
    suite.wait_healthy()
    with running(
        [sys.executable, str(ROOT / "bin" / "actor"), "--run", str(suite.path), "--index", "7"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as by_hand:  # fmt: skip
        wait_until(lambda: suite.run.pid("actor_007"), 120.0, "the actor by hand")
        assert of_state(runs.check_run(suite.run), "problem") == []
        stopped, record = suite.run.pid("actor_000"), engine_record.living_engine(suite.run)
        assert stopped is not None and record is not None
        os.kill(stopped, signal.SIGSTOP)
        os.kill(record.pid, signal.SIGKILL)
        left = {"actor_000", "actor_007"}
        wait_until(lambda: set(suite.run.living()) == left, 40.0, "the others have drained")
        done = doctor("--run", str(suite.path), "--json", runs=suite.path.parent)
        assert done.returncode == ExitCode.DEGRADED
        (found,) = [
            one for one in json.loads(done.stdout)
            if one["state"] == "problem" and one["check"] == f"run {suite.path}"
        ]  # fmt: skip
        assert (
            f"actor_000 (pid {stopped}), actor_007 (pid {by_hand.pid}) still run" in found["found"]
        )
        assert found["remedy"] == f"kill -CONT {stopped}; apex stop --run {suite.path}"
        path = f"{BIN}:{os.environ['PATH']}"
        remedy = subprocess.run(
            found["remedy"], shell=True, timeout=150, capture_output=True, cwd=ROOT,
            env={**os.environ, "PATH": path},
        )  # fmt: skip
        assert remedy.returncode == 0, remedy.stderr
        assert suite.run.living() == {} and by_hand.wait(timeout=30) == 0
        assert of_state(runs.check_run(suite.run), "problem") == []


def test_daemon_of_a_removed_run_and_socket_of_a_killed_server_are_reported(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    with running(
        [sys.executable, str(ROOT / "bin" / "replay"), "--run", str(run.path)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as replay:  # fmt: skip
        address = Path(run.endpoints().replay.insert.removeprefix("ipc://"))
        wait_until(address.exists, 60.0, "the replay server's socket")
        assert of_state(runs.check_run(run), "note") == []
        mine = [one for one in processes.apex_processes() if one.run == run.path]
        assert [(one.pid, one.kind) for one in mine] == [(replay.pid, "replay")]
        assert list(processes.check_lost(mine)) == []
        aside = run.path.rename(tmp_path / "aside")
        lost = only(processes.check_lost(mine))
        assert lost.state == "problem" and lost.remedy == f"kill {replay.pid}"
        aside.rename(run.path)
    left = [one.found for one in of_state(runs.check_run(run), "note")]
    assert any(str(address) in found for found in left), left
    assert any(f"replay (pid {replay.pid})" in found for found in left), left


def test_files_that_others_can_use_are_reported_with_a_command_that_fixes_them(
    tmp_path: Path,
) -> None:
    run = prepared(tmp_path)
    run.engine_file.write_text("{}")
    run.engine_file.chmod(0o644)
    run.path.chmod(0o777)
    keys = tmp_path / "keys"
    make_folder(keys)
    text = run.endpoints_file.read_text()
    run.endpoints_file.write_text(text.replace('keys = ""', f'keys = "{keys}"'))
    (keys / "actor.secret").chmod(0o640)
    (keys / "authorized" / "actor.public").chmod(0o666)
    problems = of_state(runs.check_run(run), "problem")
    assert len(problems) == 4 and all("apex" not in one.remedy for one in problems), problems
    for one in problems:
        subprocess.run(one.remedy.partition(",")[0], shell=True, check=True)
    assert of_state(runs.check_run(run), "problem") == []


def test_invalid_configuration_of_a_run_is_reported(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    run.config_file.write_text("[learner]\nbatchsize = 3\n")
    done = doctor("--run", str(run.path), "--json", runs=tmp_path)
    assert done.returncode == ExitCode.DEGRADED and done.stderr == ""
    found = [one["found"] for one in json.loads(done.stdout) if one["state"] == "problem"]
    assert len(found) == 2 and all("config.toml" in one for one in found), found


# Completion


def completed(*lines: list[str], runs: Path) -> list[list[str]]:
    """Completions of the last word of each line, from apex's completion function for bash."""
    script = ['eval "$(_APEX_COMPLETE=bash_source apex)"']
    for words in lines:
        script += [
            f"COMP_WORDS=({shlex.join(words)}); COMP_CWORD={len(words) - 1}; COMPREPLY=()",
            '_apex_completion apex; echo "${COMPREPLY[*]}"',
        ]
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], capture_output=True, text=True, timeout=120, cwd=ROOT,
        env={**os.environ, "APEX_RUNS": str(runs), "PATH": f"{BIN}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_bash_completes_presets_runs_logs_and_actors(tmp_path: Path) -> None:
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    one, other = prepared(tmp_path), tmp_path / "other"
    for name in ("learner", "actor_000", "actor_001"):
        (one.logs / f"{name}.log").touch()
        one.lock_file(name).touch()
    shutil.copytree(one.path, other)
    (other / "logs" / "learner.log").unlink()
    os.utime(other / "schema.json", (1, 1))  # the older one
    assert completed(
        ["apex", "doc"],
        ["apex", "run", "--preset", "pong-f"],
        ["apex", "doctor", "--preset", "lunar"],
        ["apex", "stop", "--run", ""],
        ["apex", "logs", "l"],
        ["apex", "logs", "--run", str(other), ""],
        ["apex", "actor", "restart", ""],
        ["apex", "actor", "restart", "learner"],
        runs=tmp_path,
    ) == [
        ["doctor"],
        ["pong-fast"],
        ["lunarlander"],
        [str(one.path), str(other)],
        ["learner"],
        ["actor_000", "actor_001"],
        ["actor_000", "actor_001"],
        [],
    ]
