"""Check Python, the packages that apex needs, its extras, and its installed files."""

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
DEVELOPER_EXTRAS = frozenset({"dev", "docs"})
"""Extras that no run needs."""


class Installed(NamedTuple):
    """An installed distribution."""

    version: str
    requires: list[str]


Look = Callable[[str], Installed | None]
"""Looks up a distribution by name; None if it is not installed."""


def look(name: str) -> Installed | None:
    """Look up an installed distribution; None if it is not installed."""
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return None
    return Installed(found.version, list(found.requires or ()))


def own_metadata() -> tuple[str, list[str], list[str]]:
    """Supported Python versions, requirements and extras of the installed distribution.

    Raises:
        metadata.PackageNotFoundError: apex is on the path, but not installed.
    """
    own = metadata.distribution(DISTRIBUTION)
    extras = own.metadata.get_all("Provides-Extra") or []
    supported = own.metadata.json.get("requires_python", "")
    return str(supported), list(own.requires or ()), list(extras)


def check_python(version: str, supported: str) -> Iterator[Finding]:
    """Check that apex supports the interpreter.

    Args:
        version: version of Python, such as `3.11.7`.
        supported: version range, such as `>=3.10`; empty: any.
    """
    good = SpecifierSet(supported).contains(version, prereleases=True)
    remedy = "" if good else f"create the virtual environment again with Python {supported}"
    yield Finding(
        "python",
        "ok" if good else "problem",
        f"Python {version}, {sys.executable}",
        supported or "any",
        remedy,
    )


def unmet_requirements(requirements: Iterable[str], look: Look, extra: str = "") -> dict[str, str]:
    """Requirements that are not met, each with the version found, or `missing`.

    Args:
        requirements: as in a distribution's metadata.
        look: looks up a distribution.
        extra: check the requirements of this extra; empty: those without an extra.
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
                wrong |= unmet_requirements(found.requires, look, inner)
    return wrong


def _applies(requirement: Requirement, extra: str) -> bool:
    """Whether a requirement belongs to this extra, or, if it is empty, to no extra."""
    marker = requirement.marker
    always = marker is None or marker.evaluate({"extra": ""})
    if not extra or always:
        return always and not extra
    return marker is not None and marker.evaluate({"extra": extra})


def check_packages(requirements: Collection[str], look: Look) -> Iterator[Finding]:
    """Check that each package that apex needs is installed in a supported version."""
    wrong = unmet_requirements(requirements, look)
    for wanted, found in wrong.items():
        yield Finding("packages", "problem", f"{wanted}: {found}", wanted, _pip(wanted))
    if not wrong:
        needed = [one for one in map(Requirement, requirements) if _applies(one, "")]
        yield Finding("packages", "ok", f"all {len(needed)} required packages are installed")


def check_extras(
    requirements: Collection[str], extras: Iterable[str], look: Look, needed: str | None
) -> Iterator[Finding]:
    """Check each extra; one that is not installed is a problem only if it is needed.

    Args:
        requirements: requirements of apex.
        extras: extras of apex.
        look: looks up a distribution.
        needed: the extra that the environment needs, if any.
    """
    wanted = set(extras) - DEVELOPER_EXTRAS
    for extra in sorted(wanted):
        wrong = unmet_requirements(requirements, look, extra)
        found = ", ".join(f"{name}: {what}" for name, what in wrong.items())
        if not wrong:
            yield Finding(f"extra {extra}", "ok", "installed")
        elif extra == needed:
            expected = "the environment needs it"
            yield Finding(f"extra {extra}", "problem", found, expected, _pip(*wrong))
        else:
            yield Finding(f"extra {extra}", "note", found, "only if you use it", _pip(*wrong))
    if needed is not None and needed not in wanted:
        remedy = "install this version of apex again (`make setup`)"
        yield Finding(
            f"extra {needed}", "warning", "the installed apex does not have it", needed, remedy
        )


def check_other_apex(look: Look) -> Iterator[Finding]:
    """Check that NVIDIA's apex, which has the same import name, is not installed too."""
    if look("apex") is not None:
        yield Finding(
            "packages",
            "problem",
            "another distribution named apex (NVIDIA's?) is installed with apex-suite",
            "only one package that is imported as `apex`",
            _python("-m", "pip", "uninstall", "apex") + ", or install it in another environment",
        )


def check_files(root: Path) -> Iterator[Finding]:
    """Check that the files outside the package, with which engines start daemons, exist.

    Args:
        root: the checkout, or the installed `share/apex-suite`.
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
