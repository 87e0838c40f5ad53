"""Brings the repository's documents into the site: the files, and the links between them.

A file under `docs/` is at the same place in the site without `docs/`, every other one at its own
place. The documents stay where they are, and their links work in both.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
DOCS = "docs/"
IN_SITE = (".md", ".png", ".svg")
LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s#]+)(#[^()\s]*)?\)")
"""Text, target and fragment of an inline link or image to another file."""


def site_uri(path: str) -> str:
    """Where a file of the repository is in the site."""
    return path.removeprefix(DOCS)


def documents(start: Iterable[str], root: Path = ROOT) -> list[str]:
    """The given documents and all that they link to, directly or not, that a site can show.

    Args:
        start: paths from `root`.
        root: of the repository.
    """
    found: list[str] = []
    waiting = list(start)
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.append(path)
            if path.endswith(".md"):
                waiting.extend(_linked(path, root))
    return sorted(found)


def _linked(path: str, root: Path) -> Iterator[str]:
    for match in LINK.finditer((root / path).read_text(encoding="utf-8")):
        target = _target(path, match.group(2))
        if target.endswith(IN_SITE) and (root / target).is_file():
            yield target


def _target(path: str, link: str) -> str:
    """The file, as a path from the root, that a document at `path` links to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def relinked(markdown: str, path: str, root: Path = ROOT) -> str:
    """A document with its links as they are right in the site.

    What the repository has and the site does not (folders, sources) is named instead of linked. A
    link to nothing stays as it is: the strict build reports it.

    Args:
        markdown: the document.
        path: of it, from the root.
        root: of the repository.
    """

    def link(match: re.Match[str]) -> str:
        text, written, fragment = match.group(1), match.group(2), match.group(3) or ""
        target = _target(path, written)
        if "://" in written or not (root / target).exists():
            return match.group(0)
        if not target.endswith(IN_SITE):
            return f"`{target}`" if text.strip("`") == target else f"{text} (`{target}`)"
        here = posixpath.dirname(site_uri(path)) or "."
        return f"[{text}]({posixpath.relpath(site_uri(target), here)}{fragment})"

    return LINK.sub(link, markdown)
