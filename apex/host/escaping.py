"""Escape control characters and newlines in untrusted text before printing it."""

from __future__ import annotations

import re

_BREAKS = re.compile(r"[ \t]*[\t\n\r\v\f\u2028\u2029][\s]*")


def printable(text: str) -> str:
    """The text on one line: line breaks and tabs become spaces, control characters are escaped."""
    if text.isprintable():
        return text
    return "".join(map(_shown, _BREAKS.sub(" ", text.rstrip())))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()
