"""`run.json`: the code, commands and machine of a run."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from apex.host import hardware
from apex.host.hardware import Machine
from apex.launch import prepare
from apex.runs import provenance

MACHINE = Machine(3, 5_000_000_000, True, "A core", ("A card",))


def git(folder: Path, *arguments: str) -> str:
    """Run git in a folder, with an author that does not depend on the user's settings."""
    identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.com"]
    done = subprocess.run(
        ["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone with one commit, used as the clone that apex runs from."""
    folder = tmp_path / "clone"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "code.py").write_text("first = 1\n")
    (folder / "picture").write_bytes(bytes(range(256)))
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "All")
    monkeypatch.setattr(provenance, "CLONE", folder)
    return folder


def test_new_run_records_code_and_machine_and_a_resume_adds_its_command(
    clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hardware, "this_machine", lambda: MACHINE)
    monkeypatch.setattr(sys, "orig_argv", ["python", "train.py"])
    config = prepare.preset_config("cartpole", ["learner.device=cpu"])
    run = prepare.prepare_run(tmp_path / "run", config, preset="cartpole")
    first = json.loads((run.path / "run.json").read_text())
    commit = git(clone, "rev-parse", "HEAD").strip()
    assert first["preset"] == "cartpole"
    assert first["code"] == {"commit": commit, "dirty": False, "diff_sha256": ""}
    (command,) = first["commands"]
    assert command == {
        "time": first["created"],
        "arguments": ["python", "train.py"],
        "directory": str(Path.cwd()),
        "commit": commit,
    }
    assert first["hardware"].pop("system").startswith("Linux")
    assert first["hardware"] == {
        "cores": 3, "memory_bytes": 5_000_000_000, "cpu": "A core", "gpus": ["A card"],
    }  # fmt: skip
    assert first["versions"]["python"] == "{}.{}.{}".format(*sys.version_info)
    for name in ("torch", "numpy", "gymnasium", "pyzmq"):
        assert first["versions"][name] == metadata.version(name)
    assert "pytest" not in first["versions"] and not (run.path / "run.diff").exists()

    (clone / "code.py").write_text("first = 2\n")
    monkeypatch.setattr(sys, "orig_argv", ["python", "again.py"])
    prepare.resume_run(run, ["run.max_hours=1"])
    second = json.loads((run.path / "run.json").read_text())
    assert second.pop("commands")[0] == first.pop("commands")[0] and second.keys() == first.keys()
    origin = provenance.read(run)
    assert origin is not None and origin.created == first["created"]
    assert [one.arguments[1] for one in origin.commands] == ["train.py", "again.py"]
    assert origin.commands[1].commit == f"{commit}+"
    assert origin.code is not None and not origin.code.dirty


def test_stored_diff_reproduces_the_files_in_another_clone(clone: Path) -> None:
    (clone / "code.py").write_text("first = 2\nsecond = 'ü'\n")
    (clone / "picture").write_bytes(bytes(reversed(range(256))))
    files = provenance.files_of_new_run(MACHINE, "")
    diff, code = files["run.diff"], json.loads(files["run.json"])["code"]
    assert code["dirty"] and code["diff_sha256"] == hashlib.sha256(diff).hexdigest()
    other = clone.with_name("other")
    git(clone.parent, "clone", "-q", str(clone), str(other))
    other.with_name("run.diff").write_bytes(diff)
    git(other, "apply", str(other.with_name("run.diff")))
    for name in ("code.py", "picture"):
        assert (other / name).read_bytes() == (clone / name).read_bytes()


def test_diff_of_more_than_a_megabyte_is_hashed_but_not_stored(clone: Path) -> None:
    (clone / "code.py").write_text("line\n" * 210_000)
    files = provenance.files_of_new_run(MACHINE, "")
    code = json.loads(files["run.json"])["code"]
    assert files.keys() == {"run.json"} and code["dirty"] and len(code["diff_sha256"]) == 64


def test_no_commit_is_recorded_outside_of_a_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "CLONE", tmp_path)
    files = provenance.files_of_new_run(MACHINE, "")
    made = json.loads(files["run.json"])
    assert files.keys() == {"run.json"} and made["code"] is None
    assert made["commands"][0]["commit"] == ""
    (tmp_path / ".git").mkdir()  # git refuses it
    assert provenance.clone_state(tmp_path) == (None, b"")


def test_resume_works_when_run_json_is_missing_or_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(provenance, "CLONE", tmp_path)
    run = prepare.prepare_run(tmp_path / "run", prepare.preset_config("cartpole", []))
    run.origin_file.write_text('{"created": 3}')
    prepare.resume_run(run, [])
    assert provenance.read(run) is None and "run.json" in caplog.text
    run.origin_file.unlink()
    prepare.resume_run(run, [])
    assert not run.origin_file.exists()
