"""The `apex` command without daemons: its output, error messages and exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

import pytest
from click.testing import CliRunner, Result

from apex.cli.main import main
from apex.config.loading import preset_names
from apex.envs.sets import SETS
from apex.launch import prepare
from apex.launch.prepare import prepare_run, preset_config
from apex.runs.directory import RunDirectory
from tests.fixtures.texts import check_status_keys
from tests.support.paths import APEX, ROOT
from tests.support.processes import finished


class Done(NamedTuple):
    """Result of a command."""

    returncode: int
    stdout: str
    stderr: str


def apex(*arguments: str, runs: Path | None = None) -> Done:
    """Run `apex ARGUMENTS` in this process, ten times faster than in a separate one."""
    done = CliRunner(env={"APEX_RUNS": str(runs)} if runs else None).invoke(main, arguments)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
    return Done(done.exit_code, done.stdout, done.stderr)


def apex_process(*arguments: str) -> Done:
    """Run `apex ARGUMENTS` as a separate process."""
    done = finished([*APEX, *arguments], 150.0)
    return Done(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    "arguments",
    [
        ("run", "--preset", "cartpole"),
        ("run", "--preset", "cartpole", "--serial"),
        ("run", "--preset", "cartpole", "--run", "FILE/run"),
        ("plot", "-o", "FILE/curve.png"),
        ("plot", "--csv", "FILE/curve.csv"),
        ("plot", "FILE/curve.csv", "-o", "curve.png"),
        ("enjoy", "--video", "FILE/film.mp4"),
        ("keys", "new", "FILE/keys"),
        ("config", "check", "FILE/config.toml"),
    ],
)
def test_place_that_cannot_be_used_is_one_line(
    arguments: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.touch()
    done = apex(*(word.replace("FILE", str(file)) for word in arguments), runs=file / "runs")
    assert done.returncode in (2, 78)
    assert done.stderr.startswith("apex: ") and done.stderr.count("\n") == 1, done.stderr
    assert str(file) in done.stderr and "irectory" in done.stderr


def test_presets_are_listed_and_shown() -> None:
    listed = apex_process("presets", "list")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == [
        "ant-dpg", "breakout", "cartpole", "cartpole-impala", "cartpole-r2d2", "cartpole-seed",
        "dm-control-dpg", "halfcheetah-dpg", "lunarlander", "minatar", "minigrid", "pendulum-dpg",
        "pong", "pong-fast", "pong-impala", "pong-r2d2", "pong-seed", "vizdoom",
    ]  # fmt: skip
    assert 'id = "ALE/Pong-v5"' in apex("presets", "show", "pong").stdout
    resolved = apex("presets", "show", "pong", "--resolved").stdout
    assert "[cpu" not in resolved and "max_times_sampled = 0" in resolved
    unknown = apex("presets", "show", "pang")
    assert unknown.returncode == 78
    assert unknown.stderr == (
        "apex: no preset 'pang'; there are: ant-dpg, breakout, cartpole, cartpole-impala, "
        "cartpole-r2d2, cartpole-seed, dm-control-dpg, halfcheetah-dpg, lunarlander, minatar, "
        "minigrid, pendulum-dpg, pong, pong-fast, pong-impala, pong-r2d2, pong-seed, vizdoom\n"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["learner.batchsize=3"], "learner.batchsize: unknown key; did you mean 'batch_size'?"),
        (["learner.batch_size=many"], "learner.batch_size: Expected `int`"),
        (["algorithm.n_stepp=3"], "algorithm.n_stepp: unknown key; did you mean 'n_step'?"),
        (["algorithm.name=dqnx"], "algorithm.name: unknown algorithm 'dqnx'"),
        (["algorithm.name=3"], 'algorithm.name: expected a string, such as "apex_dqn", got 3'),
        (["env.id=NoSuch-v0"], "env.id = 'NoSuch-v0'"),
        (["env.id=Pendulum-v1"], "apex_dqn supports discrete actions, but Pendulum-v1 takes"),
        (["env.id=ALE/NoSuch-v5"], "ALE has no such game"),
        (["replay.min_size=100000"], "replay.min_size (100000) must not exceed"),
        (["replay.tolerance=1.0"], "could deadlock"),
        (["batch_size=3"], "expected section.key=value"),
    ],
)
def test_config_check_reports_an_invalid_setting_in_one_line(
    settings: list[str], message: str
) -> None:
    arguments = [part for setting in settings for part in ("--set", setting)]
    done = CliRunner().invoke(main, ["config", "check", "--preset", "cartpole", *arguments])
    assert done.exit_code == 78, done.stderr
    assert message in done.stderr and "Traceback" not in done.stderr and not done.stdout


def test_config_check_accepts_every_preset() -> None:
    good = r"good: (apex_dqn|apex_dpg|impala|r2d2) on "
    absent = {name for one in SETS if not one.installed for name in one.presets()}
    for name in set(preset_names()) - {"lunarlander"} - absent:
        done = CliRunner().invoke(main, ["config", "check", "--preset", name])
        assert done.exit_code == 0, done.stderr
        assert re.match(good, done.stdout)
    # Importing Box2D fails when warnings are errors, as in this process.
    assert re.match(good, apex_process("config", "check", "--preset", "lunarlander").stdout)


def test_config_check_loads_user_code() -> None:
    catch = f"{ROOT}/examples/catch.py:Catch"
    done = CliRunner().invoke(main, ["config", "check", "--env", catch])
    assert done.exit_code == 0 and "catch.py:Catch, observations (3,) float32" in done.stdout
    done = CliRunner().invoke(main, ["config", "check", "--env", catch, "--algorithm", "apex_dpg"])
    assert done.exit_code == 78 and "takes actions from 0 to 2" in done.stderr
    done = CliRunner().invoke(main, ["config", "check", "--env", f"{ROOT}/examples/catch.py"])
    assert done.exit_code == 78 and "catch.py:Name" in done.stderr
    neither = apex("config", "check")
    assert neither.returncode == 2 and "expected --preset NAME" in neither.stderr


def test_run_refuses_a_full_directory_missing_options_or_a_missing_run(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    done = apex("run", "--preset", "cartpole", "--run", str(tmp_path / "full"))
    assert done.returncode == 78 and "is not empty" in done.stderr
    assert (tmp_path / "full" / "mine.txt").read_text() == "precious"
    assert apex("run").returncode == 2
    assert apex("run", "--resume", "--run", str(tmp_path / "none")).returncode == 78


def test_resume_accepts_the_runs_preset_and_refuses_options_for_new_runs(
    tmp_path: Path,
) -> None:
    path = tmp_path / "run"

    def resume(*arguments: str) -> Result:
        words = ["run", "--resume", "--engine", "none", "--run", str(path), *arguments]
        return CliRunner().invoke(main, words)

    made = ["--preset", "cartpole", "--actors", "3", "--engine", "none", "--run", str(path)]
    assert CliRunner().invoke(main, ["run", *made]).exit_code == 0
    done = resume("--preset", "cartpole", "--set", "run.max_hours=1")
    assert done.exit_code == 0, done.stderr
    run = RunDirectory(path)
    assert (run.config().run.max_hours, run.config().actor.count) == (1.0, 3)
    done = resume("--preset", "cartpole-r2d2")
    assert done.exit_code == 2 and "was made from the preset cartpole; --resume" in done.stderr
    assert resume("--preset", "cartpol").exit_code == 78

    # Without run.json, as runs of older versions, the configuration decides.
    run.origin_file.unlink()
    done = resume("--preset", "cartpole")
    assert done.exit_code == 2 and "was made from another configuration" in done.stderr
    count = prepare.preset_config("cartpole", []).actor.count
    assert resume("--set", "run.max_hours=0", "--actors", str(count)).exit_code == 0
    assert resume("--preset", "cartpole").exit_code == 0

    for option, value in (
        ("--config", "own.toml"), ("--env", "CartPole-v1"), ("--algorithm", "r2d2"),
        ("--endpoints", "endpoints.toml"), ("--init-from", "runs/other"),
    ):  # fmt: skip
        done = resume("--preset", "cartpole", option, value)
        assert done.exit_code == 2 and f"--set, and leave out {option}\n" in done.stderr


def test_engine_none_prepares_an_existing_empty_directory(tmp_path: Path) -> None:
    target = tmp_path / "empty"
    target.mkdir()
    done = apex(
        "run", "--preset", "cartpole", "--seed", "7", "--actors", "3", "--device", "cpu",
        "--until-return", "450", "--engine", "none", "--run", str(target),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "actor_002" in done.stdout and "actor_003" not in done.stdout
    text = (target / "config.toml").read_text()
    assert "seed = 7" in text and "until_return = 450.0" in text and "count = 3" in text
    assert target.stat().st_mode & 0o777 == 0o700


def test_status_exits_4_with_every_field_when_a_run_is_down(tmp_path: Path) -> None:
    run = prepare_run(tmp_path / "run", preset_config("cartpole", []))
    done = apex("status", "--json", "--run", str(run.path))
    assert done.returncode == 4
    assert len(done.stdout.splitlines()) == 1
    status = json.loads(done.stdout)
    assert status["run"].keys() >= {"env_id", "env_steps", "frames", "uptime_s", "bottleneck"}
    assert status["learner"].keys() >= {
        "state", "pid", "learner_step", "updates_per_s", "samples_per_s",
        "data_wait_fraction", "param_version",
    }  # fmt: skip
    assert status["replay"].keys() >= {
        "state", "pid", "items", "capacity", "bytes", "inserts_per_s", "samples_per_s",
        "stale_priorities", "refused",
    }  # fmt: skip
    assert status["actors"][0].keys() >= {
        "actor_id", "slot", "pid", "state", "env_steps", "env_steps_per_s", "param_version",
        "heartbeat_age_s", "episodes", "mean_return",
    }  # fmt: skip
    assert status["evaluator"].keys() >= {"episodes", "mean_return", "best_mean_return"}
    assert status["learner"]["pid"] is None
    check_status_keys(status, "down")


def test_runs_are_found_listed_and_removed(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    assert apex("status", runs=root).returncode == 78
    for name in ("one", "two"):
        prepare_run(root / name, preset_config("cartpole", []))
    rows = json.loads(apex("runs", "list", "--json", runs=root).stdout)
    assert sorted(Path(row["path"]).name for row in rows) == ["one", "two"]
    assert {row["state"] for row in rows} == {"down"}
    assert apex("runs", "rm", "one", runs=root).returncode == 0
    assert [p.name for p in root.iterdir()] == ["two"]
    assert apex("runs", "rm", str(tmp_path), runs=root).returncode == 78
    assert tmp_path.exists()


def test_eval_fails_when_there_is_no_checkpoint(tmp_path: Path) -> None:
    run = prepare_run(tmp_path / "run", preset_config("cartpole", []))
    done = apex("eval", "--run", str(run.path))
    assert done.returncode == 78 and "no checkpoint yet" in done.stderr
    done = apex("eval", "--pretrained", "nothing")
    assert done.returncode == 2 and "no pretrained checkpoint 'nothing'" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["enjoy", "--pretrained", "cartpole"], 2, "expected a terminal to play in; use --video"),
        (["enjoy", "--pretrained", "cartpole", "--video", "film.avi"], 2, ".mp4 or .gif"),
        (
            ["enjoy", "--pretrained", "cartpole", "--video", "no/such/f.mp4"],
            2,
            "is not a directory",
        ),
        (["enjoy", "nowhere", "--video", "film.mp4"], 78, "no such run or checkpoint"),
        (["eval", "nowhere", "--pretrained", "cartpole"], 2, "expected one of CHECKPOINT"),
        (["plot"], 2, "expected -o OUT.png, --csv OUT.csv, or both"),
        (["plot", "-o", "curve"], 2, "ends in .png or .svg or .pdf"),
        (["plot", "-o", "."], 2, "ends in .png"),
        (["plot", "-o", "c.png", "--csv", "no/c.csv"], 2, "no is not a directory"),
        (["plot", "nowhere", "-o", "curve.png"], 78, "neither a run's directory nor a CSV file"),
    ],
)
def test_play_and_plot_report_invalid_arguments_in_one_line(
    arguments: list[str], code: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = apex(*arguments)
    assert done.returncode == code and message in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "env_id", "film", "magic", "score"),
    [
        ("cartpole", "CartPole-v1", "film.gif", b"GIF89a", 475),
        ("pong", "ALE/Pong-v5", "film.mp4", b"ftyp", 18),
    ],
)
def test_pretrained_policy_is_filmed_and_scored(
    name: str, env_id: str, film: str, magic: bytes, score: float, tmp_path: Path
) -> None:
    path = tmp_path / film
    done = apex_process("enjoy", "--pretrained", name, "--video", str(path))
    assert done.returncode == 0, done.stderr
    assert magic in path.read_bytes()[:8] and f"wrote {path}: {env_id}" in done.stdout
    done = apex_process("eval", "--pretrained", name, "--episodes", "2", "--json")
    scored = json.loads(done.stdout)
    assert len(scored["returns"]) == 2 and scored["mean_return"] >= score


def test_plot_writes_a_picture_and_a_csv_file_of_a_run(tmp_path: Path) -> None:
    run = prepare_run(tmp_path / "run", preset_config("cartpole", []))
    row = {"train_s": 6.0, "env_steps": 10, "learner_step": 2, "mean_return": 9.5}
    row |= {"min_return": 8.0, "max_return": 11.0, "episodes": 20}
    (run.metrics / "evaluator.jsonl").write_text(json.dumps(row) + "\n")
    picture, table = tmp_path / "curve.png", tmp_path / "curve.csv"
    done = apex("plot", str(run.path), "--x", "env_steps", "-o", str(picture), "--csv", str(table))
    assert done.returncode == 0, done.stderr
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert table.read_text().splitlines()[1] == "run,1,6.0,10,2,9.5,8.0,11.0,20"
