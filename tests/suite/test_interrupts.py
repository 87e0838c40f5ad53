"""Ctrl-C while a command starts something stops it, says so, and ends with code 130."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from apex.cli.main import main
from apex.launch import engine
from apex.launch.prepare import prepare_run, preset_config
from apex.runs.directory import RunDirectory
from tests.support.processes import running


def test_engine_that_is_starting_is_ended_by_an_interrupt(tmp_path: Path) -> None:
    with running(["sleep", "600"], start_new_session=True) as process:
        with (
            pytest.raises(KeyboardInterrupt),
            engine.stopped_if_interrupted(RunDirectory(tmp_path), process),
        ):
            raise KeyboardInterrupt
        assert process.poll() == -15


def interrupted(*arguments: str, **options: Any) -> Result:
    """The result of a command; its standard error ends with one line of apex's."""
    done = CliRunner(**options).invoke(main, arguments)
    assert done.exit_code == 130, done.output
    assert done.stderr.splitlines()[-1].startswith("apex: interrupted by Ctrl-C"), done.stderr
    return done


def test_interrupted_start_says_that_the_run_was_stopped_and_how_to_start_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = prepare_run(tmp_path / "a run", preset_config("cartpole", ["actor.count=1"]))

    def wait(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "await_daemons", wait)
    for foreground in ((), ("--detach",)):
        done = interrupted("run", "--resume", "--run", str(run.path), *foreground)
        assert f"stopped; `apex run --resume --run '{run.path}'` starts it again" in done.stderr
        assert run.living() == {}


def test_interrupted_check_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "interrupts.py").write_text("raise KeyboardInterrupt\n")
    done = interrupted("config", "check", "--env", f"{tmp_path}/interrupts.py:Any")
    assert done.stderr == "apex: interrupted by Ctrl-C\n"
