"""Measure how long a suite takes to regain its speed after a daemon is killed.

    python -m benchmarks.recovery --out benchmarks/reliability

First, a replay server alone, by the size of its log. Its items resemble Pong's: one frame each,
which LZ4 compresses to about 1 KB.

Then each daemon of a training suite. The result is the time from SIGKILL to the beginning of the
first three seconds in which replay's inserts and samples per second are at 95 % of their earlier
rates. The case `nobody` kills nothing: it measures the noise of the machine.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import numpy.typing as npt

from apex.daemons.operator_client import ask
from apex.daemons.replay.client import InsertClient
from apex.daemons.status.reports import ReplayReport
from apex.data import frame_compression
from apex.data.chunks import Chunk, FrameRanges
from apex.host.paths import install_root
from apex.launch import engine
from apex.launch.prepare import prepare_run, preset_config
from apex.runs.directory import RunDirectory
from apex.wire.messages import Hello
from apex.wire.sockets import Poller
from benchmarks.options import ResultsFolder
from benchmarks.provenance import provenance

ITEMS, FRAME_BYTES = 100, 1000
STACK_AND_STEPS = 7
NOBODY = "nobody"
VICTIMS = (NOBODY, "actor_000", "learner", "replay")
REPEATS = 3
SETTLE_S = 20.0
WINDOW_S = 3.0


def start(run: RunDirectory) -> subprocess.Popen[bytes]:
    """Start a replay server."""
    return subprocess.Popen([sys.executable, install_root() / "bin" / "replay", "--run", run.path])


def chunk(run: RunDirectory, rng: np.random.Generator) -> Chunk:
    """A chunk of items whose frames have 1000 random bytes, then zeros."""
    schema = run.facts().schema
    assert schema.frames is not None
    blocks = []
    for _ in range(ITEMS + STACK_AND_STEPS - 1):
        frame = np.zeros(schema.frames.frame_bytes, dtype=np.uint8)
        frame[:FRAME_BYTES] = rng.integers(0, 256, FRAME_BYTES)
        blocks.append(frame_compression.compress(frame))
    columns = {
        column.name: np.zeros((ITEMS, *column.shape), column.dtype) for column in schema.columns
    }
    return Chunk(
        columns,
        rng.random(ITEMS),
        FrameRanges(
            first_frame=np.arange(ITEMS, dtype=np.int32),
            frame_count=np.full(ITEMS, STACK_AND_STEPS, dtype=np.int32),
            pad_count=np.zeros(ITEMS, dtype=np.int32),
            frame_lengths=np.array([len(block) for block in blocks], dtype=np.int32),
            blob=b"".join(blocks),
        ),
    )


def insert_until(client: InsertClient, poller: Poller, one: Chunk, items: int) -> float:
    """Insert until this many items are acknowledged. Returns the seconds that it took."""
    began = time.monotonic()
    while client.inserted_items < items or client.unacknowledged:
        poller.wait(0.01)
        client.poll()
        while client.has_credit and client.inserted_items < items:
            client.insert(one)
    return time.monotonic() - began


def log_recovery(gigabytes: float) -> dict[str, object]:
    """Fill a server, kill it, and time its successor until the first acknowledgement."""
    with tempfile.TemporaryDirectory(prefix="apex-recovery-") as folder:
        capacity = int(gigabytes * 1e9 / (FRAME_BYTES * (ITEMS + 6) / ITEMS))
        settings = [f"replay.capacity={capacity}", "replay.samples_per_insert=0"]
        run = prepare_run(Path(folder) / "run", preset_config("pong", settings))
        facts, rng = run.facts(), np.random.default_rng(1)
        hello = Hello(role="actor", name="bench", epoch=1, run_id=facts.run_id,
                      schema_hash=facts.schema.hash, pid=os.getpid())  # fmt: skip
        replay = start(run)
        client = InsertClient(run.endpoints().of("replay.insert"), hello)
        poller, one = Poller(client.client), chunk(run, rng)
        try:
            filled_s = insert_until(client, poller, one, capacity)
            log_bytes = sum(path.stat().st_size for path in run.replay.glob("*.log"))
            replay.send_signal(signal.SIGKILL)
            replay.wait()
            client.poll()
            began, replay = time.monotonic(), start(run)
            insert_until(client, poller, one, client.inserted_items + ITEMS)
            back_s = time.monotonic() - began
        finally:
            client.close()
            replay.kill()
            replay.wait()
    return {
        "items": capacity, "log_gb": log_bytes / 1e9, "filled_s": filled_s, "back_s": back_s,
        "s_per_gb": back_s / (log_bytes / 1e9), "inserts_per_s": capacity / filled_s,
    }  # fmt: skip


class Meter:
    """Reads how many items replay has inserted and sampled.

    Args:
        run: a running one.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._seen: list[tuple[float, int, int]] = []
        self._server = 0
        self._since = 0.0

    def watch(self, seconds: float) -> None:
        """Read five times a second while replay answers."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            status = ask(self._run, "replay.sample", ReplayReport)
            if status is not None:
                self._seen.append((time.monotonic(), status.inserted, status.sampled))
                if status.pid != self._server:
                    self._server, self._since = status.pid, self._seen[-1][0]
            time.sleep(0.2)

    def rates(self, begin: float, end: float) -> npt.NDArray[np.float64] | None:
        """Items inserted and sampled per second between two times; None without readings."""
        if not self._seen or self._seen[0][0] > begin or self._seen[-1][0] < end:
            return None
        times, *counts = np.array(self._seen).T
        ends = [np.interp([begin, end], times, count) for count in counts]
        return np.array([last - first for first, last in ends]) / (end - begin)

    def recovered_after(self, killed: float, before: npt.NDArray[np.float64]) -> float | None:
        """Seconds until both rates of the last server are back; None if they are not."""
        begins = np.arange(killed, self._seen[-1][0] - WINDOW_S, 0.1)
        for begin in begins[begins >= self._since]:
            now = self.rates(begin, begin + WINDOW_S)
            if now is not None and (now >= 0.95 * before).all():
                return float(begin - killed)
        return None


def suite_recovery(preset: str, warm_s: float) -> dict[str, list[float | None]]:
    """Kill each daemon in turn, `REPEATS` times. Returns seconds until the rates are back."""
    found: dict[str, list[float | None]] = {victim: [] for victim in VICTIMS}
    apex = [str(Path(sys.executable).with_name("apex"))]
    with tempfile.TemporaryDirectory(prefix="apex-recovery-") as folder:
        run = RunDirectory(Path(folder) / "run")
        subprocess.run(
            [*apex, "run", "--preset", preset, "--run", run.path, "--detach", "--actors", "1",
             "--set", "evaluator.enabled=false"],
            check=True,
        )  # fmt: skip
        try:
            Meter(run).watch(warm_s)
            for victim in VICTIMS * REPEATS:
                meter, before = Meter(run), None
                while before is None:
                    meter.watch(SETTLE_S)
                    killed = time.monotonic()
                    before = meter.rates(killed - SETTLE_S + 1.0, killed - 1.0)
                if victim != NOBODY:
                    pid = run.pid(victim)
                    assert pid is not None, f"{victim} is not running"
                    os.kill(pid, signal.SIGKILL)
                meter.watch(SETTLE_S)
                found[victim].append(meter.recovered_after(killed, before))
                click.echo(f"{victim}: {found[victim][-1]} s, {before.round()} items/s", err=True)
        finally:
            engine.stop(run, timeout_s=60.0)
    return found


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--gigabytes", type=click.FloatRange(0.01), default=1.0, show_default=True)
@click.option("--preset", default="pong-fast", show_default=True)
@click.option(
    "--warm-s", type=float, default=60.0, show_default=True, help="Seconds before the first kill."
)
@click.option("--out", type=ResultsFolder(), help="Results folder.")
def main(gigabytes: float, preset: str, warm_s: float, out: Path | None) -> None:
    """See `--help`."""
    result = {
        **provenance(),
        "log": log_recovery(gigabytes),
        "suite": {"preset": preset, "seconds_to_95_percent": suite_recovery(preset, warm_s)},
    }
    click.echo(json.dumps(result, indent=1))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "recovery.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
