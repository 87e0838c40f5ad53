"""User code that calls `sys.exit` is a fault with its place, and never a silent success."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from apex.cli.main import main
from apex.config.sections import EnvConfig
from apex.daemons.service import describe_crash
from apex.doctor.findings import guarded
from apex.envs.recreation import close
from apex.envs.registry import make_environments
from apex.errors import EnvError, EnvFaultError
from tests.support.findings import only
from tests.support.quitting import Quits

FILE = str(Path(__file__).parents[1] / "support" / "quitting.py")


def quitting(where: str) -> Any:
    """One environment that quits at a place."""
    return make_environments(EnvConfig(id=f"{FILE}:Quits", kwargs={"where": where}), 1)


def test_exit_of_an_environment_is_an_error_with_its_place() -> None:
    said = (
        r"raised SystemExit\(0\), which would end the process \(quitting.py, line \d+, in _quit_at"
    )
    with pytest.raises(EnvError, match=f"making it {said}"):
        quitting("init")
    with pytest.raises(EnvFaultError, match=f"reset {said}"):
        quitting("reset").reset(seed=1)
    environments = quitting("step")
    environments.reset(seed=1)
    with pytest.raises(EnvFaultError, match=f"step 1 {said}"):
        environments.step(np.zeros(1, np.int64))
    close(quitting("close"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--env", "TMP/at_import.py:Any"), "importing it raised SystemExit(0)"),
        (("--env", f"{FILE}:Quits", "--set", "env.kwargs.where=step"), "step 1 raised SystemExit"),
        (("--algorithm", "TMP/at_import.py:Any"), "importing it raised SystemExit(0)"),
        (("--algorithm", f"{FILE}:QuitsInNetwork"), "raised SystemExit('no licence')"),
        (("--algorithm", f"{FILE}:QuitsInConstructor"), "making it raised SystemExit(3)"),
        (("--algorithm", f"{FILE}:QuitsInSchema"), "raised SystemExit(None)"),
        (("--serial", "--algorithm", f"{FILE}:QuitsInLoss"), "raised SystemExit(0)"),
    ],
)
def test_exit_of_user_code_ends_a_command_with_one_line_that_says_so(
    arguments: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    (tmp_path / "at_import.py").write_text("import sys\nsys.exit(0)\n")
    words = [word.replace("TMP", str(tmp_path)) for word in arguments]
    started = ("run", "--preset", "cartpole", "--set", "replay.min_size=64", "--actors", "1")
    command = started if "--serial" in words else ("config", "check", "--preset", "cartpole")
    done = CliRunner(env={"APEX_RUNS": str(tmp_path / "runs")}).invoke(main, [*command, *words])
    assert done.exit_code == 78, done.output
    last = done.stderr.splitlines()[-1]
    assert said in last and ".py, line " in last and last.endswith("; fix it there"), done.stderr


def test_exit_in_a_daemon_or_a_check_is_described_for_the_status() -> None:
    with pytest.raises(SystemExit) as raised:
        Quits("init")
    described = describe_crash(raised.value)
    assert described.startswith("the environment, the algorithm or a library raised SystemExit(0)")
    assert described.endswith(", in _quit_at); fix it there")

    def check() -> Any:
        yield from ()
        Quits("init")

    assert "this check itself failed: SystemExit" in only(guarded("gpu", check)).found
