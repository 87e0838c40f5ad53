"""Read the metrics files of a run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from apex.data.schema import Array


def records(path: Path) -> list[dict[str, Any]]:
    """Read a rotated file of JSON lines, oldest first; invalid lines are skipped."""
    texts = [text for _, text in older_and_newer(path)]
    found = [_record(line) for text in texts for line in text.splitlines()]
    return [record for record in found if record is not None]


def older_and_newer(path: Path) -> list[tuple[Path, str]]:
    """Read the older file (`.1`) of a rotated file, then the file itself, if they exist.

    Returns:
        Path and text of each. A rotation during the call neither loses nor duplicates lines.
    """
    older = path.with_name(f"{path.name}.1")
    while True:
        try:
            with path.open(encoding="utf-8") as file:
                before = [(older, older.read_text(encoding="utf-8"))] if older.exists() else []
                found = [*before, (path, file.read())]
                if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                    return found
        except FileNotFoundError:  # it is being rotated, or was never there
            if not path.exists():
                return [(older, older.read_text(encoding="utf-8"))] if older.exists() else []


def _record(line: str) -> dict[str, Any] | None:
    """Parse one record; None for a line that a kill or a full disk cut off."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None


def columns(records: Sequence[dict[str, Any]]) -> dict[str, Array]:
    """Convert records to one array for each key.

    Args:
        records: R records, whose keys may differ.

    Returns:
        Arrays `[R]` by key. If all values are numbers, float64 with NaN for null or missing
        values; else objects with None for them.
    """
    names = dict.fromkeys(name for record in records for name in record)
    return {name: _column([record.get(name) for record in records]) for name in names}


def _column(values: list[Any]) -> Array:
    if all(value is None or isinstance(value, (int, float)) for value in values):
        return np.array([math.nan if value is None else value for value in values], np.float64)
    column = np.empty(len(values), object)
    column[:] = values
    return column
