"""Python, the packages that apex needs, its extras, and the files that it was installed with."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from apex.daemons.catalog import CATALOG
from apex.doctor.findings import Finding

DISTRIBUTION = "apex-suite"
OF_DEVELOPERS = frozenset({"dev", "docs"})
"""Extras that no run needs."""


class Installed(NamedTuple):
    """A distribution in this environment."""

    version: str
    requires: list[str]


Look = Callable[[str], Installed | None]
"""Looks a distribution up by its name; None where it is not installed."""


def look(name: str) -> Installed | None:
    """A distribution of this environment."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    return Installed(found.version, list(found.requires or ()))


def own_metadata() -> tuple[str, list[str], list[str]]:
    """The range of Python, the requirements and the extras of the installed distribution.

    Raises:
        metadata.PackageNotFoundError: apex is on the path, but not installed.
    """
    own = metadata.distribution(DISTRIBUTION)
    extras = own.metadata.get_all("Provides-Extra") or []
    supported = own.metadata.json.get("requires_python", "")
    return str(supported), list(own.requires or ()), list(extras)


def check_python(version: str, supported: str) -> Iterator[Finding]:
    """Whether the interpreter is one that apex is made for.

    Args:
        version: such as `3.11.7`.
        supported: a range, such as `>=3.10`; empty: any.
    """
    good = SpecifierSet(supported).contains(version, prereleases=True)
    remedy = "" if good else f"make the environment again with Python {supported}"
    yield Finding(
        "python",
        "ok" if good else "problem",
        f"Python {version}, {sys.executable}",
        supported or "any",
        remedy,
    )


def lacking(requirements: Iterable[str], look: Look, extra: str = "") -> dict[str, str]:
    """What is missing or of another version: by requirement, what was found instead.

    Args:
        requirements: as a distribution's metadata has them.
        look: finds a distribution.
        extra: whose requirements to check; empty: those that are needed without an extra.
    """
    wrong: dict[str, str] = {}
    for one in map(Requirement, requirements):
        if not _applies(one, extra):
            continue
        found = look(one.name)
        wanted = f"{canonicalize_name(one.name)}{one.specifier}"
        if found is None:
            wrong[wanted] = "missing"
        elif not one.specifier.contains(found.version, prereleases=True):
            wrong[wanted] = found.version
        else:
            for inner in one.extras:
                wrong |= lacking(found.requires, look, inner)
    return wrong


def _applies(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement is one of this extra, or without an extra of the distribution."""
    marker = requirement.marker
    always = marker is None or marker.evaluate({"extra": ""})
    if not extra or always:
        return always and not extra
    return marker is not None and marker.evaluate({"extra": extra})


def check_packages(requirements: Collection[str], look: Look) -> Iterator[Finding]:
    """Whether every package that apex needs is there, in a version that it can use."""
    wrong = lacking(requirements, look)
    for wanted, found in wrong.items():
        yield Finding("packages", "problem", f"{wanted}: {found}", wanted, _pip(wanted))
    if not wrong:
        needed = [one for one in map(Requirement, requirements) if _applies(one, "")]
        yield Finding("packages", "ok", f"{len(needed)} that apex needs, supervisor among them")


def check_extras(
    requirements: Collection[str], extras: Iterable[str], look: Look, needed: str | None
) -> Iterator[Finding]:
    """Whether each extra is there; one that is absent is a problem only where it is needed.

    Args:
        requirements: of apex.
        extras: of apex.
        look: finds a distribution.
        needed: the extra that the environment needs, if any.
    """
    wanted = set(extras) - OF_DEVELOPERS
    for extra in sorted(wanted):
        wrong = lacking(requirements, look, extra)
        found = ", ".join(f"{name}: {what}" for name, what in wrong.items())
        if not wrong:
            yield Finding(f"extra {extra}", "ok", "installed")
        elif extra == needed:
            expected = "the environment needs it"
            yield Finding(f"extra {extra}", "problem", found, expected, _pip(*wrong))
        else:
            yield Finding(f"extra {extra}", "note", found, "where it is wanted", _pip(*wrong))
    if needed is not None and needed not in wanted:
        remedy = "run `make setup`, which installs apex as it is now"
        yield Finding(f"extra {needed}", "warning", "apex as installed has none", needed, remedy)


def check_other_apex(look: Look) -> Iterator[Finding]:
    """Whether NVIDIA's apex, which has the same import name, lies in this environment too."""
    if look("apex") is not None:
        yield Finding(
            "packages",
            "problem",
            "another distribution named apex (NVIDIA's?) is installed beside apex-suite",
            "one package `apex`",
            _python("-m", "pip", "uninstall", "apex") + ", or an environment of its own for it",
        )


def check_files(root: Path) -> Iterator[Finding]:
    """Whether the files beside the package, which engines start daemons with, are there.

    Args:
        root: the checkout or the installed `share/apex-suite`.
    """
    executables = [f"bin/{spec.kind}" for spec in CATALOG]
    wanted = ["deploy/supervisord.conf", "deploy/endpoints.toml", *executables]
    missing = [name for name in wanted if not (root / name).is_file()]
    if missing:
        found = f"missing in {root}: {', '.join(missing)}"
        yield Finding("files", "problem", found, "bin/ and deploy/", "install apex-suite again")
    else:
        yield Finding("files", "ok", f"bin/ and deploy/ in {root}")


def _pip(*requirements: str) -> str:
    return _python("-m", "pip", "install", *requirements)


def _python(*arguments: str) -> str:
    return shlex.join([sys.executable, *arguments])
