"""A flood of connections: the daemons live, and who inserts goes on."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from apex.cli.statuses import ask
from apex.prepare import prepare_run, preset_config
from apex.replay.client import InsertClient
from apex.run_directory import RunDirectory
from apex.wire.client import Client
from apex.wire.sockets import Poller
from tests.conftest import ROOT, Suite, wait_until
from tests.test_memory import cartpole_chunk, hello

IDLE, GREETING = 2000, 512


@pytest.fixture
def run(suite: Suite) -> Iterator[RunDirectory]:
    """A replay server that takes all that it is sent."""
    settings = ["replay.samples_per_insert=0", "replay.capacity=20000"]
    run = prepare_run(suite.path, preset_config("cartpole", settings))
    replay = subprocess.Popen([sys.executable, ROOT / "bin" / "replay", "--run", run.path])
    try:
        wait_until(lambda: ask(run, "replay.sample"), 30.0, "replay answers")
        yield run
        assert replay.poll() is None, "replay has died"
    finally:
        replay.kill()
        replay.wait()


def open_files(run: RunDirectory) -> int:
    return int(replay_status_of(run)["open_files"])


def replay_status_of(run: RunDirectory) -> dict[str, int]:
    status = ask(run, "replay.sample")
    assert status is not None
    return status


class Producer:
    """Inserts as fast as it may."""

    def __init__(self, run: RunDirectory) -> None:
        self.client = InsertClient(run.endpoints().of("replay.insert"), hello(run))
        self._poller = Poller(self.client.client)
        self._chunk = cartpole_chunk(16)

    def insert_for(self, seconds: float) -> float:
        """Chunks acknowledged in a second."""
        began, inserted = time.monotonic(), self.client.inserted_items
        while time.monotonic() < began + seconds:
            self._poller.wait(0.01)
            self.client.poll()
            while self.client.has_credit:
                self.client.insert(self._chunk)
        return (self.client.inserted_items - inserted) / 16 / seconds


def test_thousands_of_connections_neither_end_a_daemon_nor_keep_a_producer_out(
    run: RunDirectory,
) -> None:
    with ExitStack() as stack:
        producer = Producer(run)
        stack.callback(producer.client.close)
        before, files = producer.insert_for(1.0), open_files(run)
        path = run.endpoints().replay.insert.removeprefix("ipc://")
        for _ in range(IDLE):
            idle = stack.enter_context(socket.socket(socket.AF_UNIX))
            idle.connect(path)
        many = [
            Client(run.endpoints().of("replay.insert"), hello(run, f"actor_{k:03d}"))
            for k in range(1, GREETING + 1)
        ]
        for client in many:
            stack.callback(client.close)

        def greet() -> bool:
            producer.insert_for(0.05)
            for client in many:
                client.receive()
            return all(client.ready for client in many)

        wait_until(greet, 60.0, "all are greeted")
        assert producer.insert_for(1.0) > before / 4
        # Those that say nothing are cut off after the handshake's five seconds.
        wait_until(
            lambda: producer.insert_for(0.2) and open_files(run) < files + GREETING + 50,
            30.0,
            "the idle ones are gone",
        )
        assert replay_status_of(run)["producers"] == GREETING + 1
    wait_until(lambda: open_files(run) < files + 20, 30.0, "all are gone")


def test_a_process_near_its_last_open_file_raises_an_alarm(tmp_path: Path) -> None:
    from apex.cli.statuses import alarms

    daemon = {"alarm": None, "open_files": 16_001, "max_open_files": 20_000}
    quiet = {"alarm": None, "open_files": 40, "max_open_files": 20_000}
    (alarm,) = alarms({"replay": daemon, "learner": quiet})
    assert alarm.startswith("replay has 16001 of at most 20000 open files")
    assert alarms({"replay": quiet, "learner": quiet}) == []
