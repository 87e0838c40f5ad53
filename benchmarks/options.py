"""Options that several benchmarks share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from apex.host.files import write_problem


class ResultsFolder(click.Path):
    """A folder for results, checked to be writable before anything is measured."""

    def __init__(self) -> None:
        super().__init__(file_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The folder, which may not exist yet."""
        folder = Path(super().convert(value, param, ctx))
        problem = write_problem(folder)
        if problem is not None:
            self.fail(f"{problem}; choose another folder", param, ctx)
        return folder
