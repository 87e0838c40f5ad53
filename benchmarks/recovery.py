"""How long a killed replay server takes to be back, by the size of its log.

    python benchmarks/recovery.py --gigabytes 1 --out benchmarks/reliability

Items like Pong's: a frame each, of which LZ4 leaves about 1 KB.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import numpy as np

from apex import frames
from apex.endpoints import install_root
from apex.prepare import prepare_run, preset_config
from apex.replay.client import InsertClient
from apex.run_directory import RunDirectory
from apex.types import Chunk, FrameRanges
from apex.wire.messages import Hello
from apex.wire.sockets import Poller

ITEMS, FRAME_BYTES = 100, 1000
STACK_AND_STEPS = 7


def start(run: RunDirectory) -> subprocess.Popen[bytes]:
    """A replay server."""
    return subprocess.Popen([sys.executable, install_root() / "bin" / "replay", "--run", run.path])


def chunk(run: RunDirectory, rng: np.random.Generator) -> Chunk:
    """Items whose frames are random for 1000 bytes and zero beyond."""
    schema = run.facts().schema
    assert schema.frames is not None
    blocks = []
    for _ in range(ITEMS + STACK_AND_STEPS - 1):
        frame = np.zeros(schema.frames.frame_bytes, dtype=np.uint8)
        frame[:FRAME_BYTES] = rng.integers(0, 256, FRAME_BYTES)
        blocks.append(frames.compress(frame))
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


def measure(gigabytes: float) -> dict[str, object]:
    """Fill a server, kill it, and time the next one until it acknowledges."""
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
            began = time.monotonic()
            while client.inserted_items < capacity or client.unacknowledged:
                poller.wait(0.1)
                client.poll()
                while client.has_credit and client.inserted_items < capacity:
                    client.insert(one)
            filled_s = time.monotonic() - began
            log_bytes = sum(path.stat().st_size for path in run.replay.glob("*.log"))
            replay.send_signal(signal.SIGKILL)
            replay.wait()
            client.poll()
            began, replay = time.monotonic(), start(run)
            done = client.inserted_items + ITEMS
            while client.inserted_items < done or client.unacknowledged:
                poller.wait(0.01)
                client.poll()
                if client.has_credit and client.inserted_items < done:
                    client.insert(one)
            back_s = time.monotonic() - began
        finally:
            client.close()
            replay.kill()
            replay.wait()
    return {
        "items": capacity, "log_gb": log_bytes / 1e9, "filled_s": filled_s, "back_s": back_s,
        "s_per_gb": back_s / (log_bytes / 1e9), "inserts_per_s": capacity / filled_s,
        "python": platform.python_version(), "cores": os.cpu_count(),
    }  # fmt: skip


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--gigabytes", type=click.FloatRange(0.01), default=1.0, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="For the results.")
def main(gigabytes: float, out: Path | None) -> None:
    """See `--help`."""
    result = measure(gigabytes)
    click.echo(json.dumps(result, indent=1))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "recovery.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
