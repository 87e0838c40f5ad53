"""Add the repository's documents to the site, and rewrite the links between them.

In the site, a file under `docs/` has its path without `docs/`, every other file its own path. The
documents stay where they are, and their links work in the repository and in the site.
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
    """Path in the site of a file of the repository."""
    return path.removeprefix(DOCS)


def documents(start: Iterable[str], root: Path = ROOT) -> list[str]:
    """The given documents and every document or picture that they link to, directly or not.

    Args:
        start: paths from `root`.
        root: root of the repository.
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
    """Target of a link in the document at `path`, as a path from the root."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def relinked(markdown: str, path: str, root: Path = ROOT) -> str:
    """A document with its links rewritten for the site.

    A link to a folder or source file, which the site does not have, becomes plain text with the
    path. A broken link stays unchanged: the strict build reports it.

    Args:
        markdown: text of the document.
        path: path of the document, from the root.
        root: root of the repository.
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
