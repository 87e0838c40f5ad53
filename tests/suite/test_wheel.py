"""The built wheel in an empty environment: a script and the `apex` command train."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from apex.runs import provenance
from apex.runs.directory import RunDirectory
from tests.support.paths import ROOT
from tests.support.suite import CALM, Suite

FOLDERS, FILES = ("apex", "bin", "deploy"), ("LICENSE", "README.md", "pyproject.toml", "setup.cfg")
"""Files and folders that a wheel is built from."""
SETTINGS = [
    "actor.count=1", "actor.num_envs=2", "replay.min_size=100", "evaluator.enabled=false",
    "learner.metrics_period_s=0.2", CALM[1],
]  # fmt: skip
SCRIPT = f"""
import json, time
import apex
import numpy as np
from apex import launch

def losses():
    found = run.metrics().get("loss", np.array([]))
    return found[np.isfinite(found)]

deadline = time.monotonic() + 90
with launch.run("cartpole", path="run", settings={SETTINGS!r}) as run:
    while time.monotonic() < deadline and not len(losses()):
        time.sleep(0.1)
    try:
        run.wait(timeout_s=0)
    except TimeoutError:
        health = run.status()["run"]["health"]
print(json.dumps({{
    "apex": apex.__file__,
    "health": health,
    "loss": float(losses()[0]),
    "steps": run.metrics()["step"].tolist(),
    "living": run.living(),
    "reason": run.wait(),
}}))
"""


def output(*command: str | Path, folder: Path) -> str:
    """Output of a command, which must succeed."""
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def environment(tmp_path: Path) -> Path:
    """A virtual environment with the wheel.

    The wheel is built and installed without the network and without apex's dependencies. A `.pth`
    file adds the packages of this environment. The clone's apex is not among them: the `.pth` file
    that adds it works in this environment only.
    """
    sources, environment = tmp_path / "sources", tmp_path / "environment"
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, sources / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, sources / name)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    alone = ("--no-index", "--no-deps")
    output(*pip, "wheel", *alone, "--no-build-isolation", "-w", ".", sources, folder=tmp_path)
    shutil.rmtree(sources)
    output(sys.executable, "-m", "venv", "--without-pip", environment, folder=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    python = environment / "bin" / "python"
    output(*pip, "--python", python, "install", *alone, "--no-compile", wheel, folder=tmp_path)
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "needed.pth").write_text(sysconfig.get_path("purelib"))
    return environment


def test_installed_wheel_trains_from_a_script_and_from_the_command(
    environment: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTHONPATH", "APEX_RUNS", "VIRTUAL_ENV"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "script.py").write_text(SCRIPT)
    suite = Suite(folder / "run")
    try:
        result = json.loads(output(environment / "bin/python", "script.py", folder=folder))
        assert result["apex"].startswith(f"{environment}/lib/")
        assert result["health"] in ("healthy", "degraded") and result["living"] == {}
        assert result["loss"] > 0.0 and result["reason"] == ""
        assert result["steps"] == sorted(result["steps"]) and result["steps"][-1] > 0
        origin = provenance.read(RunDirectory(suite.path))
        assert origin is not None and origin.code is None and origin.preset == "cartpole"
        assert origin.commands[0].arguments[-1] == "script.py"

        command = (environment / "bin/apex", "run", "--resume", "--run", "run", "--detach")
        output(*command, folder=folder)
        resumed = suite.wait_healthy()
        assert resumed["run"]["engine"] == "supervisor"
        for name, pid in suite.run.living().items():
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            program = f"{environment}/share/apex-suite/bin/{name.partition('_')[0]}"
            assert program in words and f"{environment}/bin/python" in words[0]
        output(environment / "bin/apex", "stop", "--run", "run", folder=folder)
        assert suite.run.living() == {}
    finally:
        suite.end()
