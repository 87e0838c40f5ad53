"""The measuring kit for a GPU machine, as far as it can be tried without one."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import stage
from tests.support.paths import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu" / "measure.sh"
LIST = re.search(r'^TESTS=\$\{TESTS:-"(.*?)"\}$', SCRIPT.read_text(), re.DOTALL | re.MULTILINE)


def call(folder: Path, **variables: str) -> tuple[int, str]:
    """Exit status and output of the script, started in the folder."""
    environment = {**os.environ, "OUT": "out", "WORK": "work", "APEX_COMMIT": "abc1234"}
    done = subprocess.run(
        ["bash", SCRIPT],
        cwd=folder,
        env={**environment, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout


def results(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "out" / "results.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def stand_in(folder: Path) -> str:
    """A program in place of Python that writes PYTHONPATH and its own arguments down."""
    path = folder / "python-of-the-test"
    path.write_text(f'#!/bin/sh\necho "$PYTHONPATH $@" >> {folder}/calls\n')
    path.chmod(0o755)
    return path.name


def test_script_is_valid() -> None:
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0


def test_every_file_of_the_stage_tests_exists() -> None:
    assert LIST is not None
    names = LIST[1].replace("\\\n", " ").split()
    assert len(names) == 24 and names[0] == "tests/unit/test_batches_on_a_gpu.py"
    assert [name for name in names if not (ROOT / name).is_file()] == []


@pytest.mark.parametrize("name", ["smoke", "micro", "run_to_return", "bench"])
def test_stage_can_be_imported(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.gpu.{name}").main)


def test_run_leaves_the_learner_and_the_checks_their_time(tmp_path: Path) -> None:
    path = f"{tmp_path}:{os.environ['PATH']}"
    variables = {"PYTHON": stand_in(tmp_path), "PATH": path, "STAGES": "run learner smoke"}
    call(tmp_path, TOTAL_S="300", **variables)
    limits = {one["stage"]: one["limit_s"] for one in results(tmp_path)[1:]}
    assert 130 <= limits.pop("run") <= 136
    assert limits == {"learner": 95, "smoke": 45}
    call(tmp_path, **variables)
    assert results(tmp_path)[5]["limit_s"] == 300


def test_relative_names_are_the_callers_and_its_packages_come_behind_the_checkout(
    tmp_path: Path,
) -> None:
    variables = {"PYTHON": f"./{stand_in(tmp_path)}", "PYTHONPATH": "/of/the/caller"}
    status, _ = call(tmp_path, STAGES="smoke", **variables)
    first, *_ = (tmp_path / "calls").read_text().splitlines()
    assert status == 0 and first == f"{ROOT}:/of/the/caller -m benchmarks.gpu.smoke"
    assert (tmp_path / "work" / "logs" / "smoke.log").exists()


def test_results_of_each_call_begin_with_its_commit(tmp_path: Path) -> None:
    variables = {"PYTHON": f"./{stand_in(tmp_path)}", "STAGES": "smoke"}
    call(tmp_path, **variables)
    call(tmp_path, **{**variables, "APEX_COMMIT": "def5678"})
    found = [one.get("commit") or one["stage"] for one in results(tmp_path)]
    assert found == ["abc1234", "smoke", "def5678", "smoke"]
    stages = (tmp_path / "out" / "stages.txt").read_text()
    assert "commit abc1234" in stages and "commit def5678" in stages


def test_interpreter_that_is_not_there_is_refused(tmp_path: Path) -> None:
    status, text = call(tmp_path, PYTHON="python-that-is-not-there")
    assert status == 2
    assert "expected an interpreter in PYTHON, got 'python-that-is-not-there'" in text


def test_results_name_no_folder_of_the_machine() -> None:
    installed = "/opt/p/lib/site-packages/torch/a.py:1"
    text = f"{ROOT}/apex/errors.py:3 {ROOT} {stage.WORK}/run {Path.home()}/x {installed}"
    assert stage.without_paths(text) == "apex/errors.py:3 . WORK/run ~/x torch/a.py:1"
