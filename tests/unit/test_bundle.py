"""Which wheels a bundle for a machine without a network gets."""

from __future__ import annotations

import importlib.util
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


@pytest.mark.parametrize(
    ("python", "numpy", "tomli"), [("3.10", "==2.2.6", True), ("3.12", "==2.4.6", False)]
)
def test_versions_are_those_of_the_interpreter_that_the_wheels_are_for(
    bundle: ModuleType, python: str, numpy: str, tomli: bool
) -> None:
    target = bundle.Target(python, "x86_64")
    pinned = bundle.constraints(target)
    assert str(pinned["numpy"].specifier) == numpy
    names = {*bundle.closure([Requirement("apex-suite[atari]")], target)}
    assert ("tomli" in names) == tomli
    assert names - {"torch"} <= pinned.keys()


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


def test_version_that_is_none_is_refused(bundle: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"expected a version of Python such as 3\.12, got 'py3'"):
        bundle.Target("py3", "x86_64")
