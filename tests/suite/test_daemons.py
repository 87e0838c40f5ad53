"""Each executable as a real process: command line, exit codes and signals."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zmq

from apex.daemons.operator_client import ask
from apex.daemons.status.reports import ReplayReport
from apex.launch.prepare import prepare_run, preset_config
from apex.runs.directory import RunDirectory
from apex.wire.sockets import context
from tests.support.processes import ARGUMENTS, DaemonProcess, daemon_command
from tests.support.waiting import wait_until
from tests.tools.fuzz import mutated_frames, valid_messages

Start = Callable[[str], DaemonProcess]
WAITS_FOR = {
    "learner": "waiting until replay has",
    "evaluator": "waiting for the learner at",
    "inference": "waiting for the learner's parameters",
    "actor": "waiting for the learner at",
}


def finish(daemon: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run one executable until it exits."""
    command = daemon_command(daemon, *arguments)
    return subprocess.run(command, capture_output=True, text=True, timeout=150)


def finish_all(*arguments: str) -> dict[str, subprocess.CompletedProcess[str]]:
    """Run all executables in parallel until they exit."""
    with ThreadPoolExecutor() as threads:
        done = threads.map(lambda daemon: finish(daemon, *arguments), ARGUMENTS)
        return dict(zip(ARGUMENTS, done))


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    settings = [
        "actor.count=1", "actor.num_envs=2", "replay.min_size=64", "actor.chunk_length=8",
        "evaluator.num_envs=2", "evaluator.episodes=2",
    ]  # fmt: skip
    return prepare_run(tmp_path / "run", preset_config("cartpole", settings))


@pytest.fixture
def start(tmp_path: Path, run: RunDirectory) -> Iterator[Start]:
    """Start executables of the run; kill the remaining ones after the test."""
    processes: list[DaemonProcess] = []

    def begin(daemon: str) -> DaemonProcess:
        processes.append(DaemonProcess(tmp_path, daemon, "--run", str(run.path)))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()


def test_help_exits_0_and_no_arguments_exit_2() -> None:
    for helped in finish_all("--help").values():
        assert helped.returncode == 0
        assert "--run" in helped.stdout and "--endpoints" in helped.stdout
    assert {done.returncode for done in finish_all().values()} == {2}


def test_missing_run_exits_78_with_one_line_and_no_traceback(tmp_path: Path) -> None:
    for done in finish_all("--run", str(tmp_path / "nothing")).values():
        assert done.returncode == 78
        assert "no such file" in done.stderr and "Traceback" not in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_invalid_configuration_or_endpoints_file_exits_78_naming_the_key(
    run: RunDirectory, tmp_path: Path
) -> None:
    wrong = tmp_path / "endpoints.toml"
    wrong.write_text('[replay]\ninsert = "ipc:///tmp/x"\nsample = "http://1.2.3.4:5"\n')
    done = finish("replay", "--run", str(run.path), "--endpoints", str(wrong))
    assert done.returncode == 78 and "learner" in done.stderr
    run.config_file.write_text(run.config_file.read_text().replace("capacity", "capacitty"))
    done = finish("replay", "--run", str(run.path))
    assert done.returncode == 78
    assert "replay.capacitty: unknown key; did you mean 'capacity'?" in done.stderr


def test_daemon_without_peers_logs_what_it_waits_for_and_sigterm_exits_0(start: Start) -> None:
    processes = {daemon: start(daemon) for daemon in WAITS_FOR if daemon != "learner"}
    for daemon, process in processes.items():
        process.wait_for_text(WAITS_FOR[daemon])
    for process in processes.values():
        assert process.end() == 0
        assert process.output().rstrip().endswith("stopped")
    learner = start("learner")  # alone: the others would find it
    learner.wait_for_text(WAITS_FOR["learner"])
    assert learner.end() == 0 and learner.output().rstrip().endswith("stopped")


def test_invalid_messages_are_counted_and_do_not_end_the_replay_server(
    start: Start, run: RunDirectory
) -> None:
    process = start("replay")
    before = wait_until(lambda: ask(run, "replay.sample", ReplayReport), 30.0, "replay answers")
    rng, good = random.Random(1), valid_messages()
    with context().socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 5000)
        stranger.connect(run.endpoints().replay.insert)
        for _ in range(2_000):
            stranger.send_multipart(mutated_frames(rng.choice(good), good, rng) or [b""])
    after = wait_until(
        lambda: (s := ask(run, "replay.sample", ReplayReport)) and s.refused >= 1_000 and s,
        30.0,
        "they are refused",
    )
    assert after.pid == before.pid and after.items == 0
    assert process.end() == 0


def test_sigterm_exits_0_during_startup(start: Start, run: RunDirectory) -> None:
    process = start("learner")
    wait_until(lambda: run.pid("learner"), 30.0, "the learner has its name")
    process.wait_for_text("started, pid")
    assert process.end() == 0


def test_second_signal_ends_a_draining_daemon_at_once(start: Start) -> None:
    process = start("replay")
    process.wait_for_text("serving")
    os.kill(process.popen.pid, signal.SIGSTOP)
    os.kill(process.popen.pid, signal.SIGTERM)
    os.kill(process.popen.pid, signal.SIGINT)
    os.kill(process.popen.pid, signal.SIGCONT)
    assert process.popen.wait(timeout=30) in (128 + signal.SIGTERM, 128 + signal.SIGINT)


def test_sigusr1_dumps_all_stacks_without_ending_the_daemon(start: Start) -> None:
    process = start("replay")
    process.wait_for_text("serving")
    os.kill(process.popen.pid, signal.SIGUSR1)
    process.wait_for_text("most recent call first", 10.0)
    assert process.popen.poll() is None
    assert process.end() == 0


def test_second_process_of_the_same_daemon_is_refused(start: Start, run: RunDirectory) -> None:
    process = start("replay")
    process.wait_for_text("serving")
    done = finish("replay", "--run", str(run.path))
    assert done.returncode == 78
    assert f"is already running (pid {process.popen.pid})" in done.stderr


def test_replay_server_reuses_the_socket_of_a_killed_one(start: Start) -> None:
    first = start("replay")
    first.wait_for_text("serving")
    first.popen.kill()
    first.popen.wait()
    second = start("replay")
    second.wait_for_text("serving")
    assert second.end() == 0


@pytest.mark.parametrize("daemon", ["replay", "learner"])
def test_server_exits_78_with_a_message_when_its_port_is_in_use(
    daemon: str, run: RunDirectory, tmp_path: Path
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        other = f"ipc://{tmp_path}/o"
        endpoints = tmp_path / "endpoints.toml"
        endpoints.write_text(
            "insecure_loopback = true\n"
            f'[replay]\ninsert = "{address if daemon == "replay" else other}"\n'
            f'sample = "ipc://{tmp_path}/s"\n'
            f'[learner]\nparams = "{address if daemon == "learner" else other}"\n'
        )
        done = finish(daemon, "--run", str(run.path), "--endpoints", str(endpoints))
    assert done.returncode == 78
    assert "is in use by another program" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("order", [("actor", "learner", "replay"), ("learner", "actor", "replay")])
def test_daemons_start_in_any_order(
    order: tuple[str, ...], start: Start, run: RunDirectory, tmp_path: Path
) -> None:
    processes = {}
    for daemon in order:
        processes[daemon] = start(daemon)
        processes[daemon].wait_for_text("waiting for" if daemon != "replay" else "serving")
    processes["learner"].wait_for_text("the first batch")
    assert [processes[d].end() for d in ("actor", "learner", "replay")] == [0, 0, 0]


def test_watchdog_ends_a_daemon_whose_work_loop_hangs(tmp_path: Path) -> None:
    prepared = prepare_run(
        tmp_path / "run", preset_config("cartpole", ["run.watchdog_s=2", "actor.count=1"])
    )
    script = tmp_path / "hang.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from apex.runs.directory import RunDirectory\n"
        "from apex.daemons.service import serve\n"
        "def body(service):\n"
        "    service.beat()\n"
        "    time.sleep(1000)\n"
        f"sys.exit(serve(RunDirectory(Path({str(prepared.path)!r})), 'replay', body))\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=150)
    assert done.returncode == 80
    assert "work loop hung for" in done.stderr and "in body" in done.stderr


def test_daemon_exits_79_after_repeated_crashes(run: RunDirectory, tmp_path: Path) -> None:
    script = tmp_path / "crash.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "from apex.daemons import restart_backoff, service\n"
        "from apex.runs.directory import RunDirectory\n"
        "restart_backoff.MAX_DELAY_S = 0.01\n"
        "def body(_):\n"
        "    raise ValueError('on purpose')\n"
        f"sys.exit(service.serve(RunDirectory(Path({str(run.path)!r})), 'replay', body))\n"
    )
    codes = []
    while len(codes) < 20 and 79 not in codes:
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=150)
        codes.append(done.returncode)
    assert codes == [70] * 8 + [79]
    assert "giving up" in done.stderr
