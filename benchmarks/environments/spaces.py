"""Try each kind of space with each algorithm, serial and with daemons, and write a table of it.

python -m benchmarks.environments --out benchmarks/environments

The CSV is written after each cell, and cells that it has are not measured again. So an interrupted
run can be continued. `--modes` and `--only` choose cells. To measure all again, delete the CSV.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import apex
from apex.acting.exploration import evaluation_seed
from apex.config.sections import Config
from apex.daemons.status.gathering import gather
from apex.data.observations import action_mask
from apex.envs.registry import make_environments
from apex.errors import ApexError
from apex.launch import engine
from apex.launch.preflight import try_config
from apex.launch.prepare import prepare_run, preset_config
from apex.launch.single_process import SerialRun
from apex.runs.directory import RunDirectory
from benchmarks.environments.spaces_rows import PRESETS, SPACES, Space, settings
from benchmarks.environments.spaces_table import MODES, Cell, read, write
from benchmarks.provenance import commit

EPISODES = 20
UPDATES = 20
"""Updates after which a run with daemons has trained."""
LOOK_PAUSE_S = 0.3
Stopping = Callable[[], str]
"""Waits until a started run has shown that it works, ends it, and returns the fault or ''."""


def random_return(config: Config, seed: int) -> float:
    """Mean return of `EPISODES` episodes of random allowed actions."""
    rng, returns = np.random.default_rng(seed), []
    with contextlib.closing(make_environments(config.env, 1)) as environments:
        observations, total = environments.reset(seed=evaluation_seed(seed)), 0.0
        while len(returns) < EPISODES:
            allowed = action_mask(observations)
            result = environments.step(environments.spec.random_actions(1, rng, allowed))
            observations, total = result.observations, total + float(result.rewards[0])
            if result.terminated[0] or result.truncated[0]:
                returns.append(total)
                total = 0.0
    return float(np.mean(returns))


def train(config: Config, folder: Path, seed: int) -> tuple[float, float]:
    """Train in this process; return the greedy policy's mean return and that of random actions."""
    run = prepare_run(folder, config)
    SerialRun(run).run()
    returns = apex.load_policy(folder).play(EPISODES, seed=seed)
    return float(np.mean(returns)), random_return(run.config(), seed)


def start(config: Config, folder: Path, limit_s: float) -> Stopping:
    """Start the daemons as `apex run --detach` does."""
    run = prepare_run(folder, config)
    engine.start_detached(run, "local")

    def stopping() -> str:
        missing, until = "it has not begun", time.monotonic() + limit_s
        try:
            while missing and time.monotonic() < until:
                missing = lacking(json.loads(json.dumps(gather(run).as_map())))
                time.sleep(LOOK_PAUSE_S if missing else 0.0)
        finally:
            engine.stop(run)
        return missing and f"not within {limit_s:.0f} s: {missing}; {log_end(run)}"

    return stopping


def lacking(status: dict[str, Any]) -> str:
    """What a run has not shown yet; empty: items, updates and an evaluation, without a fault."""
    faults = sum(row.get("env_faults", 0) for row in status["actors"])
    faults += status["evaluator"].get("env_faults", 0)
    if faults:
        return f"{faults} faults of environments"
    if status["learner"].get("learner_step", 0) < UPDATES:
        return f"{UPDATES} updates"
    if status["evaluator"].get("mean_return") is None:
        return "an evaluation"
    health = status["run"]["health"]
    return "" if health == "healthy" else f"healthy, instead of {health}"


def log_end(run: RunDirectory) -> str:
    """The last warning or error of the run's logs."""
    lines = [line for file in sorted(run.logs.glob("*.log"))
             for line in file.read_text(errors="replace").splitlines()]  # fmt: skip
    bad = [line for line in lines if "ERROR" in line or "WARN" in line or "Error" in line]
    return bad[-1] if bad else "no error in the logs"


class Measuring:
    """Measures cells one by one, and writes the tables after each.

    Args:
        out: folder of the tables.
        seed: seed of the runs.
        limit_s: seconds in which a run with daemons must show that it works.
        together: runs with daemons at once.
    """

    def __init__(self, out: Path, seed: int, limit_s: float, together: int) -> None:
        self.out, self.seed, self.limit_s, self.together = out, seed, limit_s, together
        self.cells = read(out)
        self.commit = commit()
        self.pending: list[tuple[Cell, Stopping]] = []

    def usable(self, space: Space, algorithm: str, mode: str) -> Config | None:
        """A cell's configuration; None if it is refused, or the CSV has the cell."""
        cell = self._cell(space, algorithm, mode)
        if cell.key in self.cells:
            return None
        try:
            config = preset_config(PRESETS[algorithm], settings(space, algorithm, mode, self.seed))
            try_config(config)
        except ApexError as error:
            self._keep(cell._replace(result="refused", detail=str(error)))
            return None
        return config

    def measure(
        self, space: Space, algorithm: str, mode: str, config: Config, folder: Path
    ) -> None:
        """Measure a cell."""
        cell = self._cell(space, algorithm, mode)
        try:
            if mode == "serial":
                score, chance = train(config, folder, self.seed)
                result = "learns" if score >= space.score else "works"
                self._keep(cell._replace(result=result, score=score, random=chance))
            else:
                self.pending.append((cell, start(config, folder, self.limit_s)))
        except ApexError as error:
            self._keep(cell._replace(result="fails", detail=str(error)))
        if len(self.pending) >= self.together:
            self.finish()

    def _cell(self, space: Space, algorithm: str, mode: str) -> Cell:
        return Cell(space.name, algorithm, mode, seed=self.seed, commit=self.commit)

    def finish(self) -> None:
        """Wait for the runs with daemons that were started."""
        with ThreadPoolExecutor(max_workers=self.together) as pool:
            faults = list(pool.map(lambda one: one[1](), self.pending))
        for (cell, _), fault in zip(self.pending, faults):
            self._keep(cell._replace(result="fails" if fault else "works", detail=fault))
        self.pending.clear()

    def _keep(self, cell: Cell) -> None:
        self.cells[cell.key] = cell
        write(self.out, self.cells)
        click.echo(f"{cell.space} | {cell.algorithm} | {cell.mode}: {cell.text}")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the tables.")
@click.option("--only", default="", help="Only spaces whose name contains this text.")
@click.option("--modes", default=",".join(MODES), show_default=True, help="Ways to run.")
@click.option("--algorithms", default=",".join(PRESETS), show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--limit-s", default=60.0, show_default=True, help="For a run with daemons.")
@click.option("--together", default=1, show_default=True, help="Runs with daemons at once.")
@click.option("--stop-after-s", default=1e9, help="Begin no further cell after so many seconds.")
def main(
    out: Path, only: str, modes: str, algorithms: str, seed: int, limit_s: float, together: int,
    stop_after_s: float,
) -> None:  # fmt: skip
    """Measure the cells that the CSV does not have."""
    torch.set_num_threads(1)
    until, measuring = time.monotonic() + stop_after_s, Measuring(out, seed, limit_s, together)
    spaces = [one for one in SPACES if only.lower() in one.name.lower()]
    cells = [*itertools.product(modes.split(","), algorithms.split(","), spaces)]
    tried = [(*cell, measuring.usable(cell[2], cell[1], cell[0])) for cell in cells]
    with tempfile.TemporaryDirectory(prefix="spaces") as folder:
        for number, (mode, algorithm, space, config) in enumerate(tried):
            if config is not None and time.monotonic() < until:
                measuring.measure(space, algorithm, mode, config, Path(folder) / str(number))
        measuring.finish()
    write(out, measuring.cells)


if __name__ == "__main__":
    main()
