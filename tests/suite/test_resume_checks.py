"""A resume, `--init-from` and `apex eval` are refused in one line if a checkpoint does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from apex.cli.main import main
from apex.launch.prepare import prepare_run, preset_config
from apex.launch.single_process import SerialRun
from apex.runs.directory import RunDirectory


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A short run with a checkpoint."""
    settings = ["replay.min_size=100", "run.max_env_steps=300", "evaluator.enabled=false"]
    run = prepare_run(tmp_path_factory.mktemp("runs") / "run", preset_config("cartpole", settings))
    SerialRun(run).run()
    return run


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "algorithm.stream_hidden=[64]",
            "its parameter 'value.0.weight' is ",
        ),
        ("algorithm.hidden=[8, 8]", "its parameter 'shared.0.weight' is (128, 4)"),
        ("algorithm.optimizer=rmsprop", "its optimizer is 'adam', but algorithm.optimizer is"),
        ("algorithm.name=r2d2", "r2d2"),
    ],
)
def test_resume_with_another_network_or_optimizer_is_refused_before_anything_starts(
    trained: RunDirectory, setting: str, said: str
) -> None:
    before = trained.config_file.read_bytes()
    command = ["run", "--resume", "--engine", "none", "--run", str(trained.path), "--set", setting]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 78, done.output
    assert said in done.stderr and done.stderr.count("\n") == 1 and "\\" not in done.stderr
    assert trained.config_file.read_bytes() == before and not trained.living()


@pytest.mark.parametrize(
    "command",
    [
        ("run", "--engine", "none", "--preset", "cartpole", "--init-from"),
        ("eval", "--episodes", "1"),
    ],
)
def test_checkpoint_for_another_network_is_refused_by_name(
    trained: RunDirectory, command: tuple[str, ...], tmp_path: Path
) -> None:
    words = [*command, str(trained.path), "--set", "algorithm.hidden=[32]"]
    done = CliRunner(env={"APEX_RUNS": str(tmp_path / "runs")}).invoke(main, words)
    assert done.exit_code == 78, done.output
    last = done.stderr.splitlines()[-1]
    assert "does not fit the [algorithm] section: its parameter 'shared" in last, done.stderr
    assert not list(tmp_path.iterdir())
