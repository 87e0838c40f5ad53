"""Train a preset with several seeds, one after the other, and save curves and results.

    python -m benchmarks.learn pong-fast --seed 1 --seed 2 --until-return 18 --hours 0.5 \
        --out benchmarks/pong

Writes these files and keeps the results of other seeds in them:

- OUT/PRESET.csv: every evaluation
- OUT/PRESET.png, -env-steps.png, -learner-steps.png: return over time, env steps, learner steps
- OUT/PRESET.json: command, machine, commit, seed, time to the target, CPU shares
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
import psutil

from apex.errors import RunError
from apex.evaluation import curves
from apex.evaluation.curves import Curve
from apex.host.files import replace_file
from apex.launch import engine
from apex.runs import engine_record
from apex.runs.directory import RunDirectory, claim_run_path
from benchmarks.options import ResultsFolder
from benchmarks.provenance import provenance

SAMPLE_S = 2.0
PICTURES: dict[curves.Axis, str] = {
    "wall": "",
    "env_steps": "-env-steps",
    "learner_step": "-learner-steps",
}


class CpuMeter:
    """Measures the CPU time of a run's daemons and the idle time of the machine."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._started = time.monotonic()
        self._first = _machine_seconds()
        self._seconds: dict[tuple[str, int], float] = {}

    def sample(self) -> None:
        """Read the CPU time of every running daemon."""
        for name, pid in self._run.living().items():
            with suppress(psutil.NoSuchProcess):
                times = psutil.Process(pid).cpu_times()
                self._seconds[name, pid] = times.user + times.system

    def shares(self) -> dict[str, float]:
        """Average number of cores used by each daemon, and the idle fraction of the machine."""
        elapsed = time.monotonic() - self._started
        cores: dict[str, float] = {}
        for (name, _), seconds in self._seconds.items():
            cores[name] = round(cores.get(name, 0.0) + seconds / elapsed, 3)
        total, idle = (b - a for a, b in zip(self._first, _machine_seconds()))
        return {**cores, "machine_idle": round(idle / total, 4)}


def _machine_seconds() -> tuple[float, float]:
    """Total and idle seconds of all cores since boot."""
    times = psutil.cpu_times()
    return sum(times[:8]), times.idle + times.iowait  # `user` includes guest time


def train(command: list[str], run: RunDirectory) -> tuple[float, dict[str, float]]:
    """Run to the end. Returns the seconds from the command to the end, and the CPU shares."""
    started = time.time()
    refused = subprocess.run([*command, "--run", str(run.path), "--detach"]).returncode
    if refused:
        sys.exit(refused)
    meter = CpuMeter(run)
    try:
        while engine_record.living_engine(run) is not None:
            meter.sample()
            time.sleep(SAMPLE_S)
    finally:
        if engine_record.living_engine(run) is not None:
            engine.stop(run)
    if not run.outcome_file.exists():
        raise click.ClickException(f"{run.path} ended without an outcome: see `apex logs learner`")
    return run.outcome_file.stat().st_mtime - started, meter.shares()


def facts(run: RunDirectory, curve: Curve, target: float | None) -> dict[str, Any]:
    """Results of a run."""
    config = run.config()
    best = max(curve.evaluations, key=lambda e: e.mean_return)
    first = None if target is None else curve.first_at(target)
    learner = _lines(run, "learner")[1:]
    actors = [row for path in run.metrics.glob("actor_*.jsonl") for row in _lines(run, path.stem)]
    batch = config.learner.batch_size
    return {
        "target": target,
        "reached": None if first is None else {**first._asdict(), **_samples(first, batch)},
        "best": {**best._asdict(), **_samples(best, batch)},
        "last": curve.evaluations[-1]._asdict(),
        "data_wait_fraction": _mean(learner, "data_wait_fraction"),
        "actor_wait_fraction": _mean(actors, "wait_fraction"),
        "samples_per_s": _mean(learner, "samples_per_s"),
        "evaluator_cpu_s": round(sum(row["cpu_s"] for row in _lines(run, "evaluator")), 1),
    }


def _samples(evaluation: curves.Evaluation, batch_size: int) -> dict[str, int]:
    return {"trained_samples": evaluation.learner_step * batch_size}


def _lines(run: RunDirectory, process: str) -> list[dict[str, Any]]:
    text = (run.metrics / f"{process}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def _mean(rows: list[dict[str, Any]], name: str) -> float | None:
    values = [row[name] for row in rows if row.get(name) is not None]
    return round(sum(values) / len(values), 4) if values else None


def keep(out: Path, preset: str, curve: Curve, record: dict[str, Any]) -> None:
    """Add one seed's curve and record to the existing ones, and draw all of them."""
    csv, results = out / f"{preset}.csv", out / f"{preset}.json"
    there = curves.read_csv(csv) if csv.exists() else []
    all_curves = sorted([c for c in there if c.seed != curve.seed] + [curve], key=lambda c: c.seed)
    records = json.loads(results.read_text()) if results.exists() else []
    records = [r for r in records if r["seed"] != curve.seed] + [record]
    curves.write_csv(csv, all_curves)
    text = json.dumps(sorted(records, key=lambda r: r["seed"]), indent=1)
    replace_file(results, (text + "\n").encode())
    title = f"{preset}, {record['machine']}"
    for x, name in PICTURES.items():
        curves.draw({preset: all_curves}, x, title, out / f"{preset}{name}.png")


def check_same_settings(out: Path, preset: str, settings: list[str]) -> None:
    """Raise `ClickException` if the existing results have other settings."""
    results = out / f"{preset}.json"
    for record in json.loads(results.read_text()) if results.exists() else []:
        if record["settings"] != settings:
            raise click.ClickException(
                f"{results} has results of {preset} with the settings {record['settings']}, "
                f"this run has {settings}: choose another --out"
            )


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("preset")
@click.option("--seed", "seeds", type=int, multiple=True, default=(1,))
@click.option("--until-return", type=float, help="End a run when an evaluation reaches it.")
@click.option(
    "--hours",
    type=click.FloatRange(0, min_open=True),
    default=1.0,
    show_default=True,
    help="End a run after this time.",
)
@click.option(
    "--out",
    type=ResultsFolder(),
    required=True,
    help="Folder for the results.",
)
@click.option("--set", "settings", multiple=True, metavar="SECTION.KEY=VALUE")
def main(
    preset: str,
    seeds: tuple[int, ...],
    until_return: float | None,
    hours: float,
    out: Path,
    settings: tuple[str, ...],
) -> None:
    """See `--help`."""
    out.mkdir(parents=True, exist_ok=True)
    check_same_settings(out, preset, sorted(settings))
    about = provenance()
    for seed in seeds:
        words = ["run", "--preset", preset, "--seed", str(seed), "--set", f"run.max_hours={hours}"]
        if until_return is not None:
            words += ["--until-return", f"{until_return:g}"]
        for setting in settings:
            words += ["--set", setting]
        run = RunDirectory(claim_run_path(f"learn-{preset}-{seed}"))
        click.echo(f"apex {shlex.join(words)}: in {run.path}")
        wall_s, shares = train([str(Path(sys.executable).with_name("apex")), *words], run)
        try:
            curve = Curve(preset, seed, curves.of_run(run))
        except RunError as error:
            raise click.ClickException(str(error)) from None
        record = {"preset": preset, "seed": seed, **about, "command": f"apex {shlex.join(words)}"}
        record["settings"] = sorted(settings)
        record |= {"command_to_end_s": round(wall_s, 1), "cores": shares}
        record |= facts(run, curve, until_return)
        keep(out, preset, curve, record)
        click.echo(json.dumps({k: record[k] for k in ("seed", "command_to_end_s", "reached")}))


if __name__ == "__main__":
    main()
