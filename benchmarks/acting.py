"""How fast actors step environments with local and with central inference, side by side.

    python -m benchmarks.acting --preset pong-fast --actors 1 --actors 2 --out benchmarks/inference

Nothing is learned meanwhile (the table never holds `replay.min_size` items), but items are made
and inserted. The two kinds take turns, so that both meet the same machine; what counts is each
kind's median. The actors together have as many environments as the preset says.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import click

from apex import engine
from apex.cli.statuses import ask
from apex.files import replace_file
from apex.prepare import prepare_run, preset_config
from apex.run_directory import RunDirectory
from benchmarks.provenance import provenance

KINDS = ("local", "central")
CAPACITY = 500_000
SETTLE_S = 12.0
"""More than the window of the rates that daemons report."""
START_TIMEOUT_S = 60.0


def suite(folder: Path, preset: str, kind: str, actors: int, envs: int) -> RunDirectory:
    """A run that acts and does not learn."""
    settings = [
        f"actor.inference={kind}", f"actor.count={actors}", f"actor.num_envs={envs}",
        f"replay.capacity={CAPACITY}", f"replay.min_size={CAPACITY}",
        "replay.samples_per_insert=0", "evaluator.enabled=false",
    ]  # fmt: skip
    return prepare_run(folder / f"{kind}-{actors}", preset_config(preset, settings))


def env_steps(run: RunDirectory) -> int:
    """Of all actors; 0 while the learner does not answer."""
    return int((ask(run, "learner.params") or {}).get("env_steps", 0))


def measure(run: RunDirectory, seconds: float) -> dict[str, float]:
    """Environment steps a second, and what a decision of the inference server is made for."""
    engine.start_detached(run, "local")
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while env_steps(run) == 0:
            if time.monotonic() > deadline:
                raise click.ClickException(f"{run.path}: nothing was stepped; see its logs")
            time.sleep(0.2)
        time.sleep(SETTLE_S)
        began, before = time.monotonic(), env_steps(run)
        time.sleep(seconds)
        made, elapsed = env_steps(run) - before, time.monotonic() - began
        inference = ask(run, "inference.act") if run.config().central else None
    finally:
        engine.stop(run)
    shown = ("batch_mean", "batches_per_s", "busy_fraction")
    return {"env_steps_per_s": made / elapsed, **{k: (inference or {}).get(k) for k in shown}}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--preset", default="pong-fast", show_default=True)
@click.option("--actors", "counts", type=int, multiple=True, default=(1, 2, 4), show_default=True)
@click.option("--repetitions", type=click.IntRange(1), default=3, show_default=True)
@click.option("--seconds", type=float, default=15.0, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True)
def main(preset: str, counts: tuple[int, ...], repetitions: int, seconds: float, out: Path) -> None:
    """See `--help`."""
    config = preset_config(preset, [])
    envs = config.actor.num_envs * config.actor.count
    rows: list[dict[str, Any]] = []
    for actors in counts:
        for repetition in range(repetitions):
            for kind in KINDS:
                with tempfile.TemporaryDirectory() as folder:
                    run = suite(Path(folder), preset, kind, actors, envs // actors)
                    row = {"actors": actors, "envs_an_actor": envs // actors, "inference": kind,
                           "repetition": repetition, **measure(run, seconds)}  # fmt: skip
                rows.append(row)
                click.echo(json.dumps(row))
    summary = [
        {"actors": actors, **{kind: _median(rows, actors, kind) for kind in KINDS}}
        for actors in counts
    ]
    for one in summary:
        one["central_to_local"] = round(one["central"] / one["local"], 3)
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / f"{preset}.csv", table(rows).encode())
    record = {**provenance(), "preset": preset, "median_env_steps_per_s": summary}
    replace_file(out / f"{preset}.json", (json.dumps(record, indent=1) + "\n").encode())


def _median(rows: list[dict[str, Any]], actors: int, kind: str) -> float:
    found = [r for r in rows if (r["actors"], r["inference"]) == (actors, kind)]
    return round(statistics.median(r["env_steps_per_s"] for r in found), 1)


if __name__ == "__main__":
    main()
