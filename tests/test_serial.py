"""`apex run --serial`: one process, no sockets, the same bytes each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from apex import checkpoint
from apex.prepare import prepare_run, preset_config
from apex.serial import SerialRun
from tests.conftest import ROOT

TOOLS = Path(sys.executable).parent
SETTINGS = {
    "cartpole": ("replay.min_size=200", "run.max_env_steps=1000"),
    "cartpole-impala": ("run.max_env_steps=4000",),
    "cartpole-r2d2": ("replay.min_size=32", "run.max_env_steps=1200"),
}


def serial(preset: str, path: Path, *settings: str) -> SerialRun:
    everything = [*SETTINGS[preset], "evaluator.enabled=false", *settings]
    return SerialRun(prepare_run(path, preset_config(preset, everything)))


def parameters(path: Path) -> bytes:
    (step,) = sorted((path / "checkpoints").glob("step_*"))
    return (step / "parameters.safetensors").read_bytes()


@pytest.mark.parametrize("preset", SETTINGS)
def test_two_runs_with_one_seed_give_the_same_bytes_and_another_seed_others(preset, tmp_path):
    seeds = {"a": 1, "b": 1, "c": 2}
    for name, seed in seeds.items():
        run = serial(preset, tmp_path / name, f"run.seed={seed}")
        assert "env steps (max_env_steps" in run.run()
        assert run._step >= 5, "it has learned"
    a, b, c = (parameters(tmp_path / name) for name in seeds)
    assert a == b and a != c


def test_ratio_of_samples_to_items_is_the_configured_one(tmp_path):
    run = serial("cartpole", tmp_path / "run", "replay.samples_per_insert=4", "run.seed=3")
    run.run()
    inserted, sampled = run.table.counters.inserted, run.table.counters.sampled
    assert 4 * (inserted - 200) - 64 < sampled <= 4 * (inserted - 200)


def test_queue_serves_each_sequence_once(tmp_path):
    run = serial("cartpole-impala", tmp_path / "run")
    run.run()
    counters = run.table.counters
    assert counters.sampled == counters.exhausted == 16 * run._step and counters.evicted == 0
    assert len(run.table) == counters.inserted - counters.sampled


def test_command_trains_evaluates_plots_and_opens_no_socket(tmp_path):
    """As a person would: the command, its checkpoint played, its curve drawn."""
    path = tmp_path / "run"
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    command = [
        TOOLS / "apex", "run", "--serial", "--preset", "cartpole-impala", "--seed", "1",
        "--run", path, "--until-return", "60", "--set", "evaluator.period_s=2",
        "--set", "run.max_env_steps=200000",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "until_return = 60" in done.stderr
    assert not list(tmp_path.rglob("*.insert")), "no socket was bound"
    found = checkpoint.newest(path / "checkpoints")
    assert found is not None and found.manifest.best_return >= 60
    text = (path / "metrics" / "evaluator.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[-1]["mean_return"] >= 60 and lines[-1]["env_steps"] < 200_000
    eval_command = [TOOLS / "apex", "eval", "--run", path, "--episodes", "4", "--json"]
    played = subprocess.run(eval_command, capture_output=True, text=True, timeout=60, check=True)
    assert json.loads(played.stdout)["mean_return"] >= 40


def test_serial_mode_begins_a_new_run_only(tmp_path):
    command = [TOOLS / "apex", "run", "--serial", "--resume"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "--serial" in done.stderr and "Traceback" not in done.stderr
