"""`apex doctor`: situations made on purpose, each named with a remedy that then works."""

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

import click
import pytest

from apex.cli.doctor import lines_of, summary
from apex.config.loading import parse, preset
from apex.data.schema import Column, FramesColumn, Schema
from apex.doctor import environment, gpu, limits, memory, packages, processes, runs, sockets, system
from apex.doctor.findings import Finding, guarded
from apex.errors import ExitCode
from apex.host import hardware
from apex.launch.prepare import prepare_run, preset_config
from apex.runs import engine_record
from apex.wire.keys import make_folder
from tests.support.paths import APEX, ROOT
from tests.support.services import prepared
from tests.support.suite import Suite
from tests.support.waiting import wait_until

BIN = Path(sys.executable).parent


def doctor(*arguments: str, runs: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `apex doctor ARGUMENTS` to its end, where `runs` holds all runs."""
    return subprocess.run(
        [*APEX, "doctor", *arguments],
        capture_output=True, text=True, timeout=90,
        env={**os.environ, "APEX_RUNS": str(runs)}, **options,
    )  # fmt: skip


def of_state(findings: Iterator[Finding] | list[Finding], state: str) -> list[Finding]:
    return [finding for finding in findings if finding.state == state]


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def dead_pid() -> int:
    """The process id of one that has ended."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait(timeout=30)
    return done.pid


@contextmanager
def helper(code: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `code` until it is ended; it has printed a line by now."""
    command = [sys.executable, "-c", f"{code}\nprint('ready', flush=True)\nsys.stdin.read()"]
    with subprocess.Popen(
        [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_healthy_machine_exits_0_and_tells_every_check(tmp_path: Path) -> None:
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
    # What other programs leave on this machine while the test runs is none of its business.
    problems = [one for one in findings if one["state"] == "problem"]
    assert [one for one in problems if not one["check"].startswith(("run ", "lost "))] == []
    assert done.returncode == (ExitCode.DEGRADED if problems else 0)
    assert all(one["remedy"] for one in problems)


def test_findings_are_told_to_a_person_with_what_was_expected_and_the_remedy() -> None:
    good = Finding("cores", "ok", "2 cores", "at most 2")
    bad = Finding("disk", "problem", "1 MB free\n", "2 MB", "make room")
    assert [click.unstyle(line) for line in (*lines_of(good), *lines_of(bad))] == [
        "ok       cores           2 cores (expected: at most 2)",
        "problem  disk            1 MB free\\n",
        "                         expected: 2 MB",
        "                         remedy:   make room",
    ]
    assert summary([good, bad, bad]) == "1 ok, 0 note, 0 warning, 2 problem"


def test_wrong_usage_is_refused_in_one_line(tmp_path: Path) -> None:
    unknown = doctor("--preset", "pang", runs=tmp_path)
    assert unknown.returncode == ExitCode.CONFIGURATION
    assert unknown.stderr.startswith("apex: no preset 'pang'") and unknown.stdout == ""
    both = doctor("--preset", "pong", "--run", "x", runs=tmp_path)
    assert both.returncode == ExitCode.USAGE and both.stderr.count("\n") == 1


def test_check_that_fails_becomes_a_finding() -> None:
    def check() -> Iterator[Finding]:
        yield Finding("disk", "ok", "first")
        raise ValueError("no such thing")

    first, failed = guarded("disk", check)
    assert first.found == "first"
    assert failed.state == "warning" and "ValueError: no such thing" in failed.found


# Packages


OWN = ["torch>=2.6", 'tomli>=2; python_version < "3"', 'ale-py>=0.12; extra == "atari"',
       'gymnasium[box2d]>=1.1; extra == "box2d"', 'mkdocs>=1; extra == "docs"']  # fmt: skip
GYMNASIUM = packages.Installed("1.4.0", ['Box2D==2.3.10; extra == "box2d"', "numpy>=1"])


def test_missing_and_old_packages_are_problems_with_a_command() -> None:
    old = {"torch": packages.Installed("2.5.1", [])}
    found = only(packages.check_packages(OWN, old.get))
    assert found.state == "problem" and found.found == "torch>=2.6: 2.5.1"
    assert found.remedy == f"{sys.executable} -m pip install 'torch>=2.6'"
    assert only(packages.check_packages(OWN, {}.get)).found == "torch>=2.6: missing"
    good = {"torch": packages.Installed("2.13.0+cpu", [])}
    assert only(packages.check_packages(OWN, good.get)).state == "ok"


def test_missing_extra_is_a_problem_only_where_the_environment_needs_it() -> None:
    there = {"gymnasium": GYMNASIUM}
    notes = list(packages.check_extras(OWN, ["atari", "box2d", "docs"], there.get, None))
    assert [(one.check, one.state) for one in notes] == [
        ("extra atari", "note"), ("extra box2d", "note"),
    ]  # fmt: skip
    assert notes[1].found == "box2d==2.3.10: missing", "what the extra of an extra needs"
    needed = list(packages.check_extras(OWN, ["atari", "box2d"], there.get, "box2d"))
    assert [one.state for one in needed] == ["note", "problem"]
    whole = there | {"Box2D": packages.Installed("2.3.10", [])}
    assert [one.state for one in packages.check_extras(OWN, ["box2d"], whole.get, "box2d")] == [
        "ok"
    ]


def test_python_other_apex_and_missing_files(tmp_path: Path) -> None:
    assert only(packages.check_python("3.9.1", ">=3.10")).state == "problem"
    assert only(packages.check_python("3.10.0", ">=3.10")).state == "ok"
    nvidia = {"apex": packages.Installed("0.1", [])}
    assert "NVIDIA" in only(packages.check_other_apex(nvidia.get)).found
    missing = only(packages.check_files(tmp_path))
    assert missing.state == "problem" and "deploy/supervisord.conf" in missing.found
    assert only(packages.check_files(ROOT)).state == "ok"


def test_extra_that_an_environment_needs_is_told_by_gymnasium() -> None:
    assert environment.extra_of("ALE/Pong-v5") == "atari"
    assert environment.extra_of("LunarLander-v3") == "box2d"
    assert environment.extra_of("HalfCheetah-v5") == "mujoco"
    assert environment.extra_of("CartPole-v1") is None
    assert environment.extra_of("NoSuch-v0") is None


def test_absent_ale_py_is_a_problem_of_an_atari_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    assert only(environment.check_roms("ALE/Pong-v5")).state == "ok"
    monkeypatch.setitem(sys.modules, "ale_py", None)
    found = only(environment.check_roms("ALE/Pong-v5"))
    assert found.state == "problem" and "pip install" in found.remedy
    assert list(environment.check_roms("CartPole-v1")) == []


# The GPU


NO_GPU = gpu.GpuFacts(0, None, False, False, "2.13.0", None, False)


@pytest.mark.parametrize(
    ("facts", "device", "state", "words"),
    [
        (NO_GPU, "auto", "ok", "no GPU here"),
        (NO_GPU, "cuda", "problem", "no GPU here"),
        (NO_GPU._replace(cards=1), "auto", "warning", "without a driver"),
        (NO_GPU._replace(cards=1, driver=(12, 8), visible=True), "auto", "warning", "CPU build"),
        (
            NO_GPU._replace(cards=1, driver=(12, 8), visible=True, build="13.0"),
            "auto", "warning", "runs CUDA up to 12.8",
        ),
        (
            NO_GPU._replace(cards=1, driver=(13, 0), visible=True, build="12.8"),
            "cuda", "problem", "torch finds no device",
        ),
        (
            NO_GPU._replace(cards=1, driver=(13, 0), hidden=True, build="13.0"),
            "auto", "ok", "CUDA_VISIBLE_DEVICES",
        ),
        (
            NO_GPU._replace(cards=1, driver=(13, 0), visible=True, build="13.0", usable=True),
            "auto", "ok", "can use the GPU",
        ),
    ],
)  # fmt: skip
def test_gpu_that_torch_cannot_use(
    facts: gpu.GpuFacts, device: str, state: str, words: str
) -> None:
    found = only(gpu.check_gpu(facts, device))
    assert (found.state, words in found.found) == (state, True), found
    assert bool(found.remedy) == (state != "ok")


# Limits


def test_low_limit_of_open_files_is_named_by_a_real_process(tmp_path: Path) -> None:
    run = prepare_run(tmp_path / "run", preset_config("cartpole", ["actor.count=2000"]))

    def low() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))

    done = doctor("--run", str(run.path), "--json", runs=tmp_path, preexec_fn=low)
    assert done.returncode == ExitCode.DEGRADED, done.stderr
    found = {one["check"]: one for one in json.loads(done.stdout)}["open files"]
    assert found["state"] == "problem"
    assert "too few for replay, learner, supervisord" in found["found"]
    # 64 and 4 besides one for each actor; supervisord: 6, and 3 for each of 2003 daemons.
    assert found["expected"] == "replay 2,068, learner 2,068, supervisord 6,015"
    assert found["remedy"].startswith("ulimit -n 6015")


def test_supervisord_needs_1024_files_unless_it_may_raise_the_limit() -> None:
    config = parse(preset("cartpole", gpu=False))
    low = limits.Limits(256, 256)
    found = only(limits.check_open_files(config, low, privileged=False))
    assert found.state == "problem" and found.found.endswith("too few for supervisord")
    assert found.expected.endswith("supervisord 1,024")
    assert found.remedy.startswith("ulimit -n 1024 ")
    assert only(limits.check_open_files(config, low, privileged=True)).state == "ok"
    launcher = limits.Limits(10, 4096)
    found = only(limits.check_open_files(config, launcher, privileged=False))
    assert (found.state, found.remedy) == ("warning", "ulimit -n 15")  # 5 + 2 x 5 daemons
    unlimited = limits.Limits(1024, None)
    assert only(limits.check_open_files(config, unlimited, privileged=False)).state == "ok"


def test_threads_are_counted_for_every_daemon_and_compared_with_each_limit() -> None:
    config = parse(preset("cartpole", gpu=False))
    # replay 12, learner 16, evaluator 10, two actors 10 each, engine 2; 3 more a daemon.
    assert limits.threads_needed(config, 0) == 60
    assert limits.threads_needed(config, 3) == 75
    found = only(limits.check_threads(75, {"RLIMIT_NPROC": None, "the cgroup's pids.max": 64}))
    assert found.state == "problem" and found.found == "the cgroup's pids.max leaves 64"
    assert only(limits.check_threads(75, {"RLIMIT_NPROC": 76})).state == "ok"


# Memory, disk, cores, clock


SCHEMA = Schema(
    (Column("action", "int32", ()), Column("learner_step", "int64", ())),
    FramesColumn((10, 10), max_frames=7),
)


def test_memory_and_disk_of_a_suite_are_the_sums_of_their_parts() -> None:
    config = parse(preset("cartpole", gpu=False))
    needed = memory.memory_needed(config, SCHEMA, parameters=1000, machine=10**12)
    # An item: 100 besides 4 + 8 bytes of columns and 27 of a frame's 100 pixels.
    assert needed == {
        "table": 50_000 * 139,
        "replay": 60_000_000,
        "learner": 650_000_000 + 5 * 64 * (139 + 2 * 7 * 100) + 5 * 1000,
        "actors (2)": 800_000_000,
        "engine": 50_000_000,
        "evaluator": 400_000_000,
    }
    small = memory.memory_needed(config, SCHEMA, parameters=1000, machine=1_000_000)
    assert small["table"] == 500_000, "a table gets half of the machine at most"
    disk = memory.disk_needed(config, SCHEMA, parameters=1000)
    assert disk == {
        "checkpoints": 5 * 5 * 1000,
        "logs": 12 * 20_000_000,
        "metrics": 24 * 64_000_000,
        "a film": 10_000_000,
        "insert log": 50_000 * 139 + 128_000_000,
    }


def test_need_beyond_what_is_free_is_a_problem_that_states_the_numbers() -> None:
    needed = {"table": 30_000_000_000, "learner": 700_000_000}
    found = only(memory.check_memory(needed, available=8_000_000_000))
    assert found.state == "problem" and found.found == "8.0 GB free"
    assert found.expected == "30.7 GB at most: table 30.0 GB, learner 700 MB"
    assert only(memory.check_memory(needed, 38_000_000_000)).state == "warning"
    assert only(memory.check_memory(needed, 39_000_000_000)).state == "ok"
    full = only(memory.check_disk({"logs": 10}, 9, "/runs"))
    assert full.state == "problem" and full.found == "0 MB free in /runs"


def test_memory_of_a_cgroup_counts_what_its_page_cache_would_give_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 0 < hardware.available_memory_bytes() <= hardware.memory_bytes()
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 600\ninactive_file 200\n")
    (tmp_path / "pids.max").write_text("64\n")
    (tmp_path / "pids.current").write_text("60\n")
    monkeypatch.setattr(hardware, "_cgroup_files", lambda name: [tmp_path / name])
    assert hardware.available_memory_bytes() == 300
    assert hardware.tasks_left() == 4


def test_cores_and_clock() -> None:
    config = preset_config("cartpole", ["actor.count=8"])
    found = only(system.check_cores(config, 4))
    assert found.state == "warning" and "at most 3 actors" in found.expected
    assert only(system.check_cores(config, 9)).state == "ok"
    assert only(system.check_clock(1000.0, 1060.0)).state == "ok"
    assert only(system.check_clock(1000.0, 1061.0)).state == "warning"


# Runs


def test_lock_of_a_dead_process_is_noted_and_one_that_another_holds_is_a_problem(
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
        assert f"of pid {gone}, which is gone" in held.found
        assert held.remedy == f"kill {holder.pid}"
        subprocess.run(held.remedy, shell=True, check=True)
        assert holder.wait(timeout=10) == -signal.SIGTERM
    assert of_state(runs.check_run(run), "problem") == []


def test_port_that_another_process_has_taken_is_named_with_that_process(tmp_path: Path) -> None:
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


def test_orphans_are_named_when_the_engine_was_killed_and_the_remedy_ends_them(
    suite: Suite, small: tuple[str, ...]
) -> None:
    suite.start(*small)
    suite.wait_healthy()
    by_hand = subprocess.Popen(
        [sys.executable, str(ROOT / "bin" / "actor"), "--run", str(suite.path), "--index", "7"],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
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
        assert f"actor_000 (pid {stopped}), actor_007 (pid {by_hand.pid}) live on" in found["found"]
        assert found["remedy"] == f"kill -CONT {stopped}; apex stop --run {suite.path}"
        path = f"{BIN}:{os.environ['PATH']}"
        remedy = subprocess.run(
            found["remedy"], shell=True, timeout=60, capture_output=True, cwd=ROOT,
            env={**os.environ, "PATH": path},
        )  # fmt: skip
        assert remedy.returncode == 0, remedy.stderr
        assert suite.run.living() == {} and by_hand.wait(timeout=10) == 0
        assert of_state(runs.check_run(suite.run), "problem") == []
    finally:
        by_hand.kill()
        by_hand.wait()


def test_daemon_of_a_removed_run_and_a_socket_without_server(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    replay = subprocess.Popen(
        [sys.executable, str(ROOT / "bin" / "replay"), "--run", str(run.path)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        address = Path(run.endpoints().replay.insert.removeprefix("ipc://"))
        wait_until(address.exists, 30.0, "the replay server's socket")
        assert of_state(runs.check_run(run), "note") == []
        mine = [one for one in processes.apex_processes() if one.run == run.path]
        assert [(one.pid, one.kind) for one in mine] == [(replay.pid, "replay")]
        assert list(processes.check_lost(mine)) == []
        aside = run.path.rename(tmp_path / "aside")
        lost = only(processes.check_lost(mine))
        assert lost.state == "problem" and lost.remedy == f"kill {replay.pid}"
        aside.rename(run.path)
    finally:
        replay.kill()
        replay.wait()
    left = [one.found for one in of_state(runs.check_run(run), "note")]
    assert any(str(address) in found for found in left), left
    assert any(f"replay (pid {replay.pid})" in found for found in left), left


def test_files_that_others_can_use_are_problems_with_a_command_that_mends_them(
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


def test_unreadable_configuration_of_a_run_is_a_finding(tmp_path: Path) -> None:
    run = prepared(tmp_path)
    run.config_file.write_text("[learner]\nbatchsize = 3\n")
    done = doctor("--run", str(run.path), "--json", runs=tmp_path)
    assert done.returncode == ExitCode.DEGRADED and done.stderr == ""
    found = [one["found"] for one in json.loads(done.stdout) if one["state"] == "problem"]
    assert len(found) == 2 and all("config.toml" in one for one in found), found


def test_socket_path_of_a_new_run_has_107_bytes_at_most() -> None:
    endpoints = sockets.of_new_runs()
    # The longest name is /learner.params: 15 bytes; /tmp/ has 5, /digest 7.
    fitting = Path("/tmp") / ("a" * (107 - 15 - 5 - 7)) / "digest"
    assert only(sockets.check_new_sockets(endpoints, fitting)).state == "ok"
    longer = fitting.parent.with_name(fitting.parent.name + "a") / "digest"
    found = only(sockets.check_new_sockets(endpoints, longer))
    assert (found.state, found.found.split()[0]) == ("problem", "108")


# Completion


def completed(*lines: list[str], runs: Path) -> list[list[str]]:
    """What bash is offered for the last word of each line, by apex's own completion function."""
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
