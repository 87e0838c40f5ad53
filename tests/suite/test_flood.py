"""Floods of connections: daemons survive, and producers continue to insert."""

from __future__ import annotations

import json
import resource
import socket
from contextlib import ExitStack
from pathlib import Path

from apex.daemons.operator_client import ask
from apex.daemons.status.reports import ReplayReport
from apex.runs.directory import RunDirectory
from tests.support.suite import Suite
from tests.support.waiting import wait_until
from tests.tools.flood import GREETING, Producer, flooded, replay_server


def status(run: RunDirectory) -> ReplayReport:
    found = ask(run, "replay.sample", ReplayReport)
    assert found is not None
    return found


def test_producer_continues_during_thousands_of_connections(
    suite: Suite,
) -> None:
    with replay_server(suite.path) as run:
        producer = Producer(run)
        try:
            before, files = producer.insert_for(1.0), status(run).open_files
            with flooded(run, "replay.insert", lambda: producer.insert_for(0.1)):
                assert producer.insert_for(1.0) > before / 4
                assert status(run).open_files > files + GREETING
                assert status(run).producers == GREETING + 1
                wait_until(
                    lambda: producer.insert_for(0.2) and status(run).open_files
                    < files + GREETING + 50,
                    30.0,
                    "those that say nothing are cut off",
                )  # fmt: skip
            wait_until(lambda: status(run).open_files < files + 20, 60.0, "all are gone")
        finally:
            producer.client.close()


def test_learner_continues_during_thousands_of_connections(
    suite: Suite, small: tuple[str, ...]
) -> None:
    suite.start(*small)
    before = suite.wait_healthy()
    with flooded(suite.run, "learner.params"):
        flood = suite.status()
        assert flood["learner"]["open_files"] > GREETING
        step = flood["learner"]["learner_step"]
        during = suite.wait_for(
            lambda s: s["learner"]["learner_step"] > step + 100, 60.0, "100 more steps"
        )
    assert during["learner"]["pid"] == before["learner"]["pid"]
    states = {row["actor_id"]: row["state"] for row in during["actors"]}
    assert {states["actor_000"], states["actor_001"]} <= {"stepping", "waiting_for_credit"}


def test_replay_server_on_tcp_continues_without_free_file_descriptors(
    suite: Suite, tmp_path: Path
) -> None:
    """A client without a key can also hold each connection for five seconds."""
    (tmp_path / "endpoints.toml").write_text(
        'insecure_loopback = true\n[replay]\ninsert = "tcp://127.0.0.1:*"\n'
        'sample = "ipc://{sockets}/replay.sample"\n'
        '[learner]\nparams = "ipc://{sockets}/learner.params"\n'
    )
    with replay_server(suite.path, tmp_path / "endpoints.toml") as run:
        producer, before = Producer(run), status(run)
        limit = before.open_files + 20
        resource.prlimit(before.pid, resource.RLIMIT_NOFILE, (limit, limit))
        host, _, port = run.endpoints().of("replay.insert").address[6:].rpartition(":")

        def crowd() -> bool:
            """Open more connections, since silent ones are closed by the server."""
            for _ in range(5):
                stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
            producer.insert_for(0.2)
            rows = (run.metrics / "replay.jsonl").read_text().splitlines()
            return any(json.loads(row)["open_files"] == limit for row in rows)

        try:
            with ExitStack() as stack:
                wait_until(crowd, 60.0, "the server counts its files and finds none left")
                wait_until(lambda: producer.insert_for(0.2) > 0, 60.0, "the producer goes on")
            wait_until(lambda: status(run).open_files < limit - 5, 60.0, "the others are gone")
            assert status(run).pid == before.pid
        finally:
            producer.client.close()
