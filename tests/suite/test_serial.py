"""`apex run --serial`: one process, no sockets, reproducible results."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import zmq

from apex.errors import DivergedError, SchemaError
from apex.launch.prepare import prepare_run, preset_config
from apex.launch.single_process import SerialRun
from apex.plugins import Extensions
from apex.runs import checkpoint
from tests.support.environments import CloseFails, PaysMuch
from tests.support.paths import ROOT
from tests.support.processes import memory_bytes

TOOLS = Path(sys.executable).parent
QUIET = ("evaluator.enabled=false", "learner.checkpoint_period_s=3600")
SETTINGS = {
    "cartpole": ("replay.min_size=200", "run.max_env_steps=1000"),
    "cartpole-impala": ("run.max_env_steps=4000",),
    "cartpole-r2d2": ("replay.min_size=32", "run.max_env_steps=1200"),
    "pendulum-dpg": ("replay.min_size=200", "run.max_env_steps=1000"),
}


def serial(
    preset: str, path: Path, *settings: str, clock: Callable[[], float] = time.monotonic
) -> SerialRun:
    everything = [*SETTINGS[preset], *QUIET, *settings]
    return SerialRun(prepare_run(path, preset_config(preset, everything)), clock=clock)


def parameters(path: Path) -> bytes:
    (step,) = sorted((path / "checkpoints").glob("step_*"))
    return (step / "parameters.safetensors").read_bytes()


@pytest.mark.parametrize("preset", SETTINGS)
def test_parameters_are_identical_for_the_same_seed_and_differ_for_another(preset, tmp_path):
    for seed in (1, 2):
        run = serial(preset, tmp_path / f"seed_{seed}", f"run.seed={seed}")
        assert "env steps (max_env_steps" in run.run()
        assert run.trainer.learner_step >= 5, "it has learned"
    settings = [word for setting in (*SETTINGS[preset], *QUIET) for word in ("--set", setting)]
    command = [TOOLS / "apex", "run", "--serial", "--preset", preset, "--seed", "1"]
    command += ["--run", tmp_path / "again", *settings]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=120, check=True)
    first, second, again = (parameters(tmp_path / name) for name in ("seed_1", "seed_2", "again"))
    assert again == first and second != first


def test_result_is_kept_although_closing_the_environments_fails(tmp_path, caplog):
    settings = [*SETTINGS["cartpole"], *QUIET, "evaluator.enabled=true", "evaluator.period_s=1e-3"]
    extensions = Extensions(CloseFails)
    run = prepare_run(tmp_path / "run", preset_config("cartpole", settings), extensions=extensions)
    assert "env steps (max_env_steps" in SerialRun(run, extensions).run()
    lines = (run.metrics / "evaluator.jsonl").read_text().splitlines()
    assert {json.loads(line)["mean_return"] for line in lines} == {5.0}
    assert "closing the environments raised RuntimeError: close failed" in caplog.text
    assert checkpoint.newest(run.checkpoints) is not None


@pytest.mark.parametrize(
    ("preset", "reward"),
    [
        ("cartpole", 1e12),
        ("pendulum-dpg", 1e12),
        ("cartpole-r2d2", 1e20),  # its values are rescaled
        ("cartpole-impala", 1e12),
        ("cartpole-impala", 1e30),
    ],
)
def test_rewards_that_are_too_large_are_named_and_clipping_them_helps(preset, reward, tmp_path):
    extensions = Extensions(partial(PaysMuch, reward, continuous=preset == "pendulum-dpg"))

    def run(*settings: str) -> SerialRun:
        config = preset_config(preset, [*SETTINGS[preset], *QUIET, *settings])
        path = tmp_path / f"run{len(settings)}"
        return SerialRun(prepare_run(path, config, extensions=extensions), extensions)

    with pytest.raises((SchemaError, DivergedError), match=r"reach \d.*set env\.clip_rewards"):
        run().run()
    clipped = run("env.clip_rewards=true")
    assert "env steps (max_env_steps" in clipped.run() and clipped.trainer.learner_step >= 5


def test_memory_is_constant_when_the_table_is_full(tmp_path):
    def measuring_clock() -> float:
        """Clock that also measures memory every 6000 steps."""
        if started and run.env_steps // 6000 > len(resident):
            resident.append(memory_bytes(os.getpid()))
        return time.monotonic()

    started, resident = False, []
    run = serial(
        "cartpole", tmp_path / "run", "replay.capacity=2000", "replay.samples_per_insert=2",
        "run.max_env_steps=18000", "run.seed=4", "learner.batch_size=32", clock=measuring_clock,
    )  # fmt: skip
    started = True
    run.run()
    assert len(run.table) == 2000 and run.table.counters.evicted > 10_000
    assert len(resident) == 3 and resident[2] - resident[1] < 1e6, resident


def test_ratio_of_samples_to_items_is_as_configured(tmp_path):
    run = serial("cartpole", tmp_path / "run", "replay.samples_per_insert=4", "run.seed=3")
    run.run()
    inserted, sampled = run.table.counters.inserted, run.table.counters.sampled
    assert 4 * (inserted - 200) - 64 < sampled <= 4 * (inserted - 200)


def test_queue_serves_each_sequence_once(tmp_path):
    run = serial("cartpole-impala", tmp_path / "run")
    run.run()
    counters = run.table.counters
    assert (
        counters.sampled == counters.exhausted == 16 * run.trainer.learner_step
        and counters.evicted == 0
    )
    assert len(run.table) == counters.inserted - counters.sampled


def test_no_socket_is_opened(tmp_path, monkeypatch):
    def opened(*arguments):
        raise AssertionError("a socket")

    monkeypatch.setattr(zmq.Context, "socket", opened)
    with pytest.raises(AssertionError, match="a socket"):
        zmq.Context.instance().socket(zmq.ROUTER)
    serial("cartpole", tmp_path / "run").run()


def test_command_trains_and_evaluates_and_its_checkpoint_can_be_played(tmp_path):
    path = tmp_path / "run"
    command = [
        TOOLS / "apex", "run", "--serial", "--preset", "cartpole-impala", "--seed", "1",
        "--run", path, "--until-return", "60", "--set", "evaluator.period_s=2",
        "--set", "run.max_env_steps=200000",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "until_return = 60" in done.stderr
    found = checkpoint.newest(path / "checkpoints")
    assert found is not None and found.manifest.best_return >= 60
    text = (path / "metrics" / "evaluator.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert lines[-1]["mean_return"] >= 60 and lines[-1]["env_steps"] < 200_000
    eval_command = [TOOLS / "apex", "eval", "--run", path, "--episodes", "4", "--json"]
    played = subprocess.run(eval_command, capture_output=True, text=True, timeout=150, check=True)
    assert json.loads(played.stdout)["mean_return"] >= 40


@pytest.mark.parametrize(
    "option",
    [["--resume"], ["--detach"], ["--engine", "local"], ["--endpoints", "endpoints.toml"]],
)
def test_options_about_daemons_are_refused(option, tmp_path):
    command = [TOOLS / "apex", "run", "--serial", "--run", tmp_path / "run", *option]
    done = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 2 and "--serial" in done.stderr and "Traceback" not in done.stderr
