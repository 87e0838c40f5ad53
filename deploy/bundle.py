"""Fill a folder with the wheels that a machine without a network needs to install apex.

    make bundle PYTHON=3.12

The folder gets `wheels/` and `install.sh`. The versions are those of constraints.txt. torch is left
out unless it is asked for, since a GPU machine usually has a torch that fits its driver.
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
OWN = "apex-suite"
SOURCES = ("apex", "bin", "deploy", "LICENSE", "README.md", "pyproject.toml", "setup.cfg")
"""Files and folders that apex's wheel is built from."""
WHEELS, SCRIPT = "wheels", "install.sh"
"""What a bundle has."""
TORCH = "torch"
NEWEST_GLIBC = 28
"""Wheels for glibc 2.5 to 2.28 are taken; PyTorch's own wheels need 2.28."""
LEGACY_PLATFORMS = ("manylinux2014", "manylinux2010", "manylinux1")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")

INSTALL = """#!/usr/bin/env bash
# Installs apex and what it needs from the wheels beside this file, without a network.
#   PYTHON=/path/to/python bash install.sh     TARGET=DIR installs into a folder for PYTHONPATH
# Python {python} on {machine} is expected.{torch} What is there and new enough is kept.
set -eu
here=$(cd "$(dirname "${{BASH_SOURCE[0]}}")" && pwd)
python=${{PYTHON:-python3}}
"$python" -c 'import sys; v = "%d.%d" % sys.version_info[:2]; \\
v == "{python}" or sys.exit("expected Python {python}, got %s: make a bundle for it" % v)'
{check}if [ -n "${{TARGET:-}}" ]; then
    "$python" -m pip install --no-index --no-deps --upgrade --force-reinstall \\
        --disable-pip-version-check --target "$TARGET" "$here"/wheels/*.whl
else
    "$python" -m pip install --no-index --disable-pip-version-check --find-links "$here/wheels" \\
        {requirements}
    # An apex that is there is replaced, even one of the same version.
    "$python" -m pip install --no-index --no-deps --force-reinstall --disable-pip-version-check \\
        "$here"/wheels/apex_suite-*.whl
fi
"""
CHECK_TORCH = """"$python" -c 'import importlib.util, sys; \\
importlib.util.find_spec("torch") or sys.exit("torch is missing: install it first, or make the bundle with TORCH=1")'
"""  # noqa: E501


class Target:
    """The interpreter that the wheels are for.

    Args:
        python: version, such as `3.12` or `python3.12`.
        machine: architecture, such as `x86_64`.
    """

    def __init__(self, python: str, machine: str) -> None:
        version = re.fullmatch(r"(?:python)?(3\.\d+)", python)
        if version is None:
            sys.exit(f"expected a version of Python such as 3.12, got '{python}'")
        python = version[1]
        self.python = python
        self.machine = machine
        self._environment: dict[str, str] = {
            **{k: str(v) for k, v in default_environment().items()}, "python_version": python,
            "python_full_version": f"{python}.0", "platform_machine": machine,
        }  # fmt: skip

    def needs(self, requirement: Requirement, extras: Iterable[str] = ()) -> bool:
        """Whether a requirement applies, for any of the extras or for none."""
        marker = requirement.marker
        environments = [{**self._environment, "extra": extra} for extra in ("", *extras)]
        return marker is None or any(marker.evaluate(one) for one in environments)

    def options(self) -> list[str]:
        """Options of `pip download` for this interpreter."""
        names = [f"manylinux_2_{minor}" for minor in range(NEWEST_GLIBC, 4, -1)]
        platforms = [f"--platform={name}_{self.machine}" for name in (*names, *LEGACY_PLATFORMS)]
        version = ["--python-version", self.python, "--implementation", "cp"]
        return ["--only-binary=:all:", *version, *platforms]


def constraints(target: Target) -> dict[str, Requirement]:
    """The exact versions of constraints.txt for an interpreter, by canonical name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    found = (Requirement(line) for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(one.name): one for one in found if target.needs(one)}


def without_marker(requirement: Requirement) -> str:
    """A requirement's name and version only."""
    return f"{requirement.name}{requirement.specifier}"


def closure(wanted: Iterable[Requirement], target: Target) -> Iterator[str]:
    """Canonical names of all packages that the wanted ones need, torch and its own left out.

    The requirements of a package are read from this environment, where `make setup` has installed
    all of them. One that only other versions of Python need is taken to need nothing itself.
    """
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = list(wanted)
    while todo:
        one = todo.pop()
        name, extras = canonicalize_name(one.name), frozenset(one.extras)
        if name == TORCH or (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name != OWN:
            yield name
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue
        todo += [more for more in map(Requirement, requires) if target.needs(more, extras)]


def download(folder: Path, target: Target, specs: Iterable[str]) -> None:
    """Download wheels, without what they need. Ends the program if one cannot be had."""
    command = [*PIP, "download", "--no-deps", *target.options(), "--dest", str(folder), *specs]
    subprocess.run(command, check=True)


def download_torch(folder: Path, target: Target, pinned: dict[str, Requirement]) -> None:
    """Download torch and what it needs, as its own requirements say."""
    with (folder.parent / "constraints.txt").open("w", encoding="utf-8") as file:
        file.writelines(f"{without_marker(one)}\n" for one in pinned.values())
    command = [*PIP, "download", *target.options(), "--dest", str(folder)]
    subprocess.run([*command, "--constraint", file.name, TORCH], check=True)
    Path(file.name).unlink()


def build_own(folder: Path) -> None:
    """Build the wheel of apex from a copy of its sources, so that no old build gets into it."""
    with tempfile.TemporaryDirectory(prefix="apex-bundle-") as temporary:
        for name in SOURCES:
            source, copy = ROOT / name, Path(temporary) / name
            if source.is_dir():
                shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, copy)
        command = [*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation"]
        subprocess.run([*command, "--wheel-dir", str(folder), temporary], check=True)


def write_install(folder: Path, target: Target, more: list[str], *, torch: bool) -> None:
    """Write the script that installs the wheels."""
    text = INSTALL.format(
        python=target.python,
        machine=target.machine,
        torch="" if torch else " torch is not among the wheels.",
        check="" if torch else CHECK_TORCH,
        requirements=" ".join(f"'{one}'" for one in more),
    )
    path = folder / SCRIPT
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def check_out(out: Path) -> None:
    """End the program if the folder has something that is not a bundle, which would be lost."""
    if not out.exists():
        return
    if not out.is_dir():
        sys.exit(f"expected a folder for the bundle, got the file {out}: choose another --out")
    names = {path.name for path in out.iterdir()}
    if names and not {WHEELS, SCRIPT} <= names:
        sys.exit(
            f"expected an empty folder or an older bundle, got {out} without {WHEELS}/ and "
            f"{SCRIPT}: empty it or choose another --out"
        )


def replace(out: Path, made: Path) -> None:
    """Move the wheels and the script to where they belong; nothing else there changes."""
    shutil.rmtree(out / WHEELS, ignore_errors=True)
    (made / WHEELS).rename(out / WHEELS)
    (made / SCRIPT).replace(out / SCRIPT)


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    here = ".".join(platform.python_version_tuple()[:2])
    parser.add_argument("--python", default=here, help="version of Python; default: %(default)s")
    parser.add_argument("--machine", default=platform.machine(), help="default: %(default)s")
    parser.add_argument("--extras", default="atari", help="apex's extras, separated by commas")
    parser.add_argument("--more", default="", help="other packages: names, or NAME==VERSION")
    parser.add_argument("--torch", action="store_true", help="include torch and its CUDA packages")
    parser.add_argument("--out", type=Path, default=ROOT / "bundle", help="default: bundle/")
    given = parser.parse_args()
    target = Target(given.python, given.machine)
    check_out(given.out)
    own = Requirement(f"{OWN}[{given.extras}]" if given.extras else OWN)
    more = [Requirement(text) for text in given.more.split()]
    pinned = constraints(target)
    exact = {canonicalize_name(one.name): str(one) for one in more if one.specifier}
    names = sorted({*closure([own, *more], target)})
    unknown = [name for name in names if name not in pinned and name not in exact]
    if unknown:
        sys.exit(f"not in constraints.txt: {', '.join(unknown)}; expected NAME==VERSION in --more")
    specs = [exact[name] if name in exact else without_marker(pinned[name]) for name in names]
    given.out.mkdir(parents=True, exist_ok=True)
    # An older bundle stays until all of the new one is there.
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=given.out) as temporary:
        made = Path(temporary)
        wheels = made / WHEELS
        wheels.mkdir()
        download(wheels, target, specs)
        if given.torch:
            download_torch(wheels, target, pinned)
        build_own(wheels)
        write_install(made, target, [str(own), *map(str, more)], torch=given.torch)
        replace(given.out, made)
    sizes = [path.stat().st_size for path in (given.out / WHEELS).iterdir()]
    print(f"{given.out}: {len(sizes)} wheels, {sum(sizes) / 2**20:.1f} MiB")
    print(f"install them with: PYTHON=python{target.python} bash {given.out.name}/install.sh")


if __name__ == "__main__":
    main()
