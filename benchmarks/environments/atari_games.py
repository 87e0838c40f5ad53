"""Make, step and evaluate every Atari game once, and write a table of the results.

python -m benchmarks.environments.atari_games --out benchmarks/environments
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import click
import torch

from apex.envs.sets import set_of
from apex.errors import ApexError
from apex.launch.prepare import preset_config
from benchmarks.environments.trial import Trial, try_out
from benchmarks.provenance import provenance

PRESET = "pong-fast"
STEPS = 200
EPISODE_FRAMES = 2_000
"""Emulator frames after which an episode is truncated, so that every evaluation ends."""
FRAME_SKIP = 4
COLUMNS = ("game", "result", "actions", "steps", "episodes", "items", "return", "evaluation steps")


class Row(NamedTuple):
    """Result of one game."""

    game: str
    trial: Trial | None
    fault: str = ""
    """Why it does not work; empty: it does."""

    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        if self.trial is None:
            return (self.game, self.fault, *[""] * (len(COLUMNS) - 2))
        one = self.trial
        score = "" if one.evaluation is None else f"{one.evaluation:g}"
        numbers = (one.num_actions, one.explored, one.episodes, one.items, score, one.evaluated)
        return (self.game, "works", *map(str, numbers))


def games() -> list[str]:
    """Ids of all games."""
    atari = set_of("ALE/Pong-v5")
    assert atari is not None
    return atari.ids()


def rows(names: Iterable[str]) -> Iterator[Row]:
    """Try each game, and yield its result."""
    for name in names:
        settings = [f"env.id={name}", f"env.max_episode_frames={EPISODE_FRAMES}"]
        try:
            config = preset_config(PRESET, settings)
            limit = EPISODE_FRAMES // FRAME_SKIP + 1
            yield Row(name, try_out(config, steps=STEPS, evaluation_steps=limit))
        except ApexError as error:
            yield Row(name, None, str(error))


def write(out: Path, results: list[Row]) -> None:
    """Write `atari_games.csv` and `atari_games.md`."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "atari_games.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(row.cells() for row in results)
    (out / "atari_games.md").write_text(page(results), encoding="utf-8")


def page(results: list[Row]) -> str:
    """The table with where it came from, in Markdown."""
    made = provenance()
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    works = sum(row.trial is not None for row in results)
    lines = [
        "# Every Atari game, made, stepped and evaluated once",
        "",
        f"**{works} of {len(results)} games work.** `make test-atari-games` makes this table.",
        "",
        f"For each game, with the settings of `{PRESET}` and an untrained network: {STEPS} steps",
        "of two environments that explore, the items that they make, and one greedy episode of at",
        f"most {EPISODE_FRAMES:,} frames. The returns are no measure of learning.",
        "",
        f"- {made['date']}, commit {made['commit']}: `{made['command']}`",
        f"- {made['machine']}",
        f"- Python {made['python']}, {versions}",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    lines += ["| " + " | ".join(row.cells()) + " |" for row in results]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the table.")
@click.option("--only", default="", help="Try only games whose id contains this text.")
def main(out: Path, only: str) -> None:
    """Try all Atari games; exit code 1 if one does not work."""
    torch.set_num_threads(1)
    results = []
    for row in rows(name for name in games() if only.lower() in name.lower()):
        click.echo("  ".join(row.cells()))
        results.append(row)
    write(out, results)
    sys.exit(any(row.trial is None for row in results))


if __name__ == "__main__":
    main()
