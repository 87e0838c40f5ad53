"""Which wheels a bundle for a machine without a network gets."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement

from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def bundle() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bundle", ROOT / "deploy" / "bundle.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("python", "tomli"), [("3.10", True), ("3.12", False)])
def test_versions_are_those_of_the_interpreter_that_the_wheels_are_for(
    bundle: ModuleType, python: str, tomli: bool
) -> None:
    target = bundle.Target(python, "x86_64")
    pinned = bundle.constraints(target)
    names = {*bundle.closure([Requirement("apex-suite[atari]")], target)}
    assert ("tomli" in names) == tomli
    assert names - {"torch"} <= pinned.keys()


def test_constraint_for_other_versions_of_python_is_left_out(
    bundle: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = ("one==1.0 ; python_version < '3.11'", "one==2.0 ; python_version >= '3.11'")
    (tmp_path / "constraints.txt").write_text("# comment\n" + "\n".join(lines) + "\n")
    monkeypatch.setattr(bundle, "ROOT", tmp_path)
    chosen = {
        python: str(bundle.constraints(bundle.Target(python, "x86_64"))["one"].specifier)
        for python in ("3.10", "3.12")
    }
    assert chosen == {"3.10": "==1.0", "3.12": "==2.0"}


def test_requirements_of_requirements_are_included_and_torch_is_not(bundle: ModuleType) -> None:
    target = bundle.Target("3.12", "x86_64")
    plain = {*bundle.closure([Requirement("apex-suite")], target)}
    assert {"gymnasium", "farama-notifications", "rich", "mdurl", "pyzmq"} <= plain
    assert not {"torch", "sympy", "ale-py", "pytest", "apex-suite"} & plain
    atari = {*bundle.closure([Requirement("apex-suite[atari]")], target)}
    assert atari - plain == {"ale-py"}


def test_wheels_are_for_the_wanted_machine_only(bundle: ModuleType) -> None:
    options = bundle.Target("3.11", "aarch64").options()
    platforms = [one for one in options if one.startswith("--platform")]
    assert platforms[0] == "--platform=manylinux_2_28_aarch64"
    assert len(platforms) == 27 and all(one.endswith("_aarch64") for one in platforms)
    assert options[options.index("--python-version") + 1] == "3.11"


@pytest.mark.parametrize("python", ["py3", "3", "2.7", "python3", "3.12.1", ""])
def test_malformed_version_is_refused(bundle: ModuleType, python: str) -> None:
    expected = rf"expected a version of Python such as 3\.12, got '{re.escape(python)}'$"
    with pytest.raises(SystemExit, match=expected):
        bundle.Target(python, "x86_64")


def test_name_of_an_interpreter_is_taken_as_its_version(bundle: ModuleType) -> None:
    assert bundle.Target("python3.12", "x86_64").python == "3.12"


@pytest.mark.parametrize(
    ("given", "passed"),
    [((), None), (("PYTHON=python3.12",), "'python3.12'"), (("PYTHON=2.7",), "'2.7'")],
)
def test_make_passes_the_version_of_its_command_line_on(
    given: tuple[str, ...], passed: str | None
) -> None:
    command = ["make", "--dry-run", "bundle", *given]
    # A make that runs the tests would pass its own variables on.
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    shown = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout
    (line,) = (line for line in shown.splitlines() if "deploy/bundle.py" in line)
    _, _, rest = line.partition("--python ")
    assert (rest.split()[0] if rest else None) == passed


def script(bundle: ModuleType, folder: Path, python: str, *, torch: bool) -> Path:
    bundle.write_install(
        folder, bundle.Target(python, "x86_64"), ["apex-suite[atari]"], torch=torch
    )
    return folder / "install.sh"


@pytest.mark.parametrize("torch", [False, True])
def test_script_is_valid_and_never_asks_a_network(
    bundle: ModuleType, tmp_path: Path, torch: bool
) -> None:
    path = script(bundle, tmp_path, "3.12", torch=torch)
    assert subprocess.run(["bash", "-n", path], check=False).returncode == 0
    text = path.read_text().replace("\\\n", " ")
    installs = [line for line in text.splitlines() if "-m pip" in line]
    assert len(installs) == 3 and all("--no-index" in line for line in installs)
    assert "http" not in text
    assert ('find_spec("torch")' in text) != torch


def test_script_refuses_another_version_of_python(bundle: ModuleType, tmp_path: Path) -> None:
    here = ".".join(map(str, sys.version_info[:2]))
    path = script(bundle, tmp_path, "3.1", torch=True)
    environment = {**os.environ, "PYTHON": sys.executable}
    refused = subprocess.run(
        ["bash", path], env=environment, capture_output=True, text=True, check=False
    )
    assert refused.returncode == 1
    assert f"expected Python 3.1, got {here}: make a bundle for it" in refused.stderr


@pytest.mark.parametrize("target", [False, True])
def test_script_replaces_an_apex_that_is_there(
    bundle: ModuleType, tmp_path: Path, target: bool
) -> None:
    """A stand-in of Python writes its arguments down."""
    stand_in, here = tmp_path / "python", ".".join(map(str, sys.version_info[:2]))
    stand_in.write_text('#!/bin/sh\necho "$@" >> "$(dirname "$0")/calls"\n')
    stand_in.chmod(0o755)
    path = script(bundle, tmp_path, here, torch=True)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "apex_suite-1.0-py3-none-any.whl").touch()
    environment = {**os.environ, "PYTHON": str(stand_in), "TARGET": "site" if target else ""}
    subprocess.run(["bash", path], env=environment, check=True)
    *_, last = (tmp_path / "calls").read_text().splitlines()
    words = {"--no-index", "--no-deps", "--force-reinstall"}
    assert words <= {*last.split()} and last.endswith("/apex_suite-1.0-py3-none-any.whl")
    assert ("--target site" in last) == target


def arguments(monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["bundle.py", "--out", str(out)])


def test_older_bundle_stays_until_the_new_one_is_complete(
    bundle: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old, note = tmp_path / "wheels" / "old.whl", tmp_path / "note"
    old.parent.mkdir()
    for path in (old, note, tmp_path / "install.sh"):
        path.write_text("old")
    arguments(monkeypatch, tmp_path)

    def fails(*_: object) -> None:
        raise subprocess.CalledProcessError(1, "pip download")

    monkeypatch.setattr(bundle, "download", fails)
    with pytest.raises(subprocess.CalledProcessError):
        bundle.main()
    assert old.read_text() == (tmp_path / "install.sh").read_text() == "old"
    monkeypatch.setattr(bundle, "download", lambda folder, *_: (folder / "new.whl").touch())
    monkeypatch.setattr(bundle, "build_own", lambda folder: (folder / "apex.whl").touch())
    bundle.main()
    assert {path.name for path in tmp_path.iterdir()} == {"wheels", "install.sh", "note"}
    assert {path.name for path in old.parent.iterdir()} == {"new.whl", "apex.whl"}
    assert (tmp_path / "install.sh").read_text() != "old" and note.read_text() == "old"


def test_folder_of_something_else_is_refused(
    bundle: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    arguments(monkeypatch, tmp_path)
    with pytest.raises(SystemExit, match=r"expected an empty folder or an older bundle, got "):
        bundle.main()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
