"""Flood a replay server with connections and measure a producer's remaining insert rate.

    python -m tests.tools.flood measure --out benchmarks/reliability

2,000 connections send nothing; 512 send HELLO and stay. They come from a separate process. This
process inserts at full speed, alternately without and with the flood.
"""

from __future__ import annotations

import json
import select
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import click

from apex.daemons.operator_client import ask
from apex.daemons.replay.client import InsertClient
from apex.daemons.status.reports import ReplayReport
from apex.launch.prepare import prepare_run, preset_config
from apex.runs.directory import RunDirectory
from apex.wire.client import Client
from apex.wire.sockets import Poller
from benchmarks.options import ResultsFolder
from benchmarks.provenance import provenance
from tests.support.builders import cartpole_chunk, hello_of
from tests.support.paths import ROOT
from tests.support.processes import running
from tests.support.waiting import wait_until

IDLE, GREETING = 2000, 512
ROUNDS, SECONDS = 7, 3.0
"""Shorter than the five seconds after which silent connections are closed."""


@contextmanager
def replay_server(path: Path, endpoints: Path | None = None) -> Iterator[RunDirectory]:
    """A replay server that accepts every insert; it must still run at the end of the block."""
    settings = ["replay.samples_per_insert=0", "replay.capacity=20000"]
    run = prepare_run(path, preset_config("cartpole", settings), endpoints)
    with running([sys.executable, ROOT / "bin" / "replay", "--run", run.path]) as replay:
        wait_until(lambda: ask(run, "replay.sample", ReplayReport), 30.0, "replay answers")
        yield run
        assert replay.poll() is None, "replay has died"


class Producer:
    """Inserts as fast as its credits allow."""

    def __init__(self, run: RunDirectory) -> None:
        self.client = InsertClient(run.endpoints().of("replay.insert"), hello_of(run))
        self._poller = Poller(self.client.client)
        self._chunk = cartpole_chunk(16)

    def insert_for(self, seconds: float) -> float:
        """Acknowledged items per second."""
        began, inserted = time.monotonic(), self.client.inserted_items
        while time.monotonic() < began + seconds:
            self._poller.wait(0.01)
            self.client.poll()
            while self.client.has_credit:
                self.client.insert(self._chunk)
        return (self.client.inserted_items - inserted) / seconds


@contextmanager
def flooded(
    run: RunDirectory, endpoint: str, meanwhile: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Hold all flood connections to an endpoint; calls `meanwhile` repeatedly as they open."""
    command = [sys.executable, "-m", "tests.tools.flood", "hold", str(run.path), endpoint]
    flood = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def all_open() -> bool:
        meanwhile()
        assert flood.poll() is None, "the flood has died"
        return bool(select.select([flood.stdout], [], [], 0.0)[0])

    try:
        wait_until(all_open, 60.0, "all connections are open")
        yield
    finally:
        flood.kill()
        flood.communicate()


@click.group(help=(__doc__ or "").partition("\n")[0])
def main() -> None:
    """See `--help`."""


@main.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.argument("endpoint")
def hold(path: Path, endpoint: str) -> None:
    """Open all connections, print a line, and hold them until stdin ends."""
    run = RunDirectory(path)
    target = run.endpoints().of(endpoint)
    with ExitStack() as stack:
        many = [Client(target, hello_of(run, f"actor_{k:03d}")) for k in range(100, 100 + GREETING)]
        for client in many:
            stack.callback(client.close)

        def greeted() -> bool:
            for client in many:
                client.receive()
            return all(client.ready for client in many)

        wait_until(greeted, 60.0, "all are greeted")
        for _ in range(IDLE):
            idle = stack.enter_context(socket.socket(socket.AF_UNIX))
            idle.connect(target.address.removeprefix("ipc://"))
        click.echo("all connections are open")
        sys.stdin.read()


@main.command()
@click.option("--out", type=ResultsFolder(), help="For the results.")
def measure(out: Path | None) -> None:
    """The insert rate with the flood as a share of the rate without it, alternating."""
    ratios = []
    with (
        tempfile.TemporaryDirectory(prefix="apex-flood-") as folder,
        replay_server(Path(folder) / "run") as run,
    ):
        producer = Producer(run)
        for _ in range(ROUNDS):
            before = producer.insert_for(SECONDS)
            with flooded(run, "replay.insert", lambda: producer.insert_for(0.1)):
                during = producer.insert_for(SECONDS)
            after = producer.insert_for(SECONDS)
            ratios.append(2 * during / (before + after))
            click.echo(f"{before:.0f} {during:.0f} {after:.0f} items/s", err=True)
        producer.client.close()
    result = {
        **provenance(),
        "ratio": statistics.median(ratios),
        "min": min(ratios),
        "max": max(ratios),
    }
    click.echo(json.dumps(result))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "flood.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
