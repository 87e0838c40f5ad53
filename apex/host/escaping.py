"""Escape control characters and newlines in untrusted text before printing it."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text on one line, control characters escaped."""
    return text if text.isprintable() else text.encode("unicode_escape").decode()
