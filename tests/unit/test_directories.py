"""Directories of new runs: their names, and directories that cannot be written."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from apex.doctor.run_directories import check_all
from apex.errors import ExitCode, RunError, UsageError
from apex.host.escaping import printable
from apex.host.files import check_output, describe_os_error, write_problem
from apex.runs.directory import RunDirectory, check_runs_root, claim_run_path
from tests.support.findings import only


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A root for runs, which does not exist yet."""
    monkeypatch.setenv("APEX_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def test_runs_that_start_at_the_same_time_get_different_directories(runs: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(claim_run_path, ["cartpole"] * 40))
    assert len(set(paths)) == 40
    assert sorted(path.name for path in runs.iterdir()) == sorted(path.name for path in paths)


def test_directory_that_another_command_has_just_made_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.check_unused()
    run.logs.mkdir(parents=True)
    with pytest.raises(RunError, match="is not empty"):
        run.check_unused()


def test_place_below_a_file_cannot_be_written(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    assert write_problem(tmp_path / "new" / "newer") is None
    assert write_problem(file / "runs") == f"{file} is not a directory"
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert write_problem(tmp_path / "dangling") == f"{tmp_path / 'dangling'} is not a directory"
    with pytest.raises(RunError, match="is not a directory; choose another --run DIR"):
        RunDirectory(file / "run").check_unused()
    with pytest.raises(UsageError, match=f"video.mp4 cannot be written: {file} is not a directory"):
        check_output(file / "video.mp4", (".mp4",))


def test_root_of_runs_below_a_file_is_refused_and_found_by_the_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    root = tmp_path / "file" / "runs"
    monkeypatch.setenv("APEX_RUNS", str(root))
    for refused in (check_runs_root, lambda: claim_run_path("cartpole")):
        with pytest.raises(RunError, match="name another directory with --run DIR") as raised:
            refused()
        assert raised.value.exit_code == ExitCode.CONFIGURATION
    found = only(check_all([], root))
    assert found.state == "problem" and found.found.endswith(f"{root.parent} is not a directory")
    assert only(check_all([], tmp_path / "runs")).state == "ok"


def test_error_of_the_system_is_described_if_it_is_about_files() -> None:
    denied = PermissionError(errno.EACCES, "Permission denied", "/runs/x")
    assert describe_os_error(denied) == "/runs/x: Permission denied"
    assert describe_os_error(BrokenPipeError(errno.EPIPE, "Broken pipe")) is None
    full = describe_os_error(OSError(errno.EMFILE, os.strerror(errno.EMFILE)))
    assert full is not None and full.startswith("Too many open files: this process may have ")
    assert "ulimit -n" in full


def test_printable_text_is_one_line_with_only_control_characters_escaped() -> None:
    assert printable("caf\xe9 \u4e16") == "caf\xe9 \u4e16"
    error = "Error(s) in loading:\n\tsize mismatch \xe9\x1b[2J\r\n\n  end\n"
    assert printable(error) == "Error(s) in loading: size mismatch \xe9\\x1b[2J end"
    assert printable("\udcff\x9b") == "\\udcff\\x9b"
