"""Text of others, fit to be shown: a peer's words are no command of the terminal's, and no line."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text on one line, control characters escaped."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
