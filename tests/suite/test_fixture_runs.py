"""Stored runs of an earlier commit can be resumed and played by the current code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from apex.cli.main import main
from tests.fixtures import KEPT, PRESETS, runs
from tests.support.suite import Suite


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Suite]]:
    """A copy of each run, resumed by a replay server and a learner, all in parallel."""
    folder = tmp_path_factory.mktemp("resumed")
    with ExitStack() as stack:
        suites, started = {}, []
        for name in PRESETS:
            suite = Suite(runs.copy_of(KEPT / name, folder / name).path)
            stack.callback(suite.end)
            runs.open_sockets(suite.run)
            command = ["run", "--resume", "--engine", "none", "--run", str(suite.path)]
            done = CliRunner().invoke(main, command)
            assert done.exit_code == 0, done.stderr
            daemons = runs.Daemons(suite.run)
            stack.callback(daemons.kill)
            daemons.start("replay")
            daemons.start("learner")
            suites[name] = suite
            started.append(daemons)
        yield suites
        for daemons in started:
            daemons.signal()
        for daemons in started:
            daemons.end()


@pytest.mark.parametrize("name", PRESETS)
def test_run_continues_where_it_ended(name: str, resumed: dict[str, Suite]) -> None:
    suite, kept = resumed[name], runs.kept_facts(name)
    step = kept["learner_step"]
    status = suite.wait_for(
        lambda s: s["learner"]["learner_step"] > step and s["learner"]["state"] == "training",
        120.0,
        "training goes on",
    )
    learner, replay = status["learner"], status["replay"]
    assert learner["param_version"] > kept["param_version"]
    assert status["run"]["env_steps"] == kept["env_steps"]
    assert status["evaluator"]["best_mean_return"] == kept["best_return"]
    # Nothing is inserted, so that an item that is no longer there was served by a queue.
    assert replay["items"] + replay["exhausted"] == kept["table"]["items"]
    assert replay["inserted"] == kept["inserted"] and replay["damaged"] == 0
    log = (suite.run.logs / "learner.log").read_text()
    assert f"resumed from step_{step:010d} at learner step {step}, " in log
    for daemon in ("replay", "learner"):
        lines = (suite.run.logs / f"{daemon}.log").read_text().splitlines()
        assert lines and {line.split()[1] for line in lines} == {"INFO"}, suite.logs()


@pytest.mark.parametrize("name", PRESETS)
def test_table_is_restored_with_its_items_and_priorities(name: str, tmp_path: Path) -> None:
    with runs.opened_table(runs.copy_of(KEPT / name, tmp_path / "run")) as keeper:
        found, kept = runs.table_facts(keeper), runs.kept_facts(name)["table"]
    for key in ("priorities", "priorities_by_place"):
        assert found.pop(key) == pytest.approx(kept.pop(key), rel=1e-12)
    assert found == kept


@pytest.mark.parametrize("name", PRESETS)
def test_learner_continues_with_its_networks_and_optimizers(name: str, tmp_path: Path) -> None:
    run = runs.copy_of(KEPT / name, tmp_path / "run")
    with runs.opened_table(run) as keeper:
        found = runs.next_updates(run, keeper)
    kept = runs.kept_facts(name)["updates"]
    assert len(found) == len(kept) == 2
    for update, expected in zip(found, kept):
        assert update == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_policy_of_a_checkpoint_gives_the_same_outputs(name: str) -> None:
    kept = runs.kept_facts(name)
    (newest,) = (KEPT / name / "checkpoints").glob("step_*")
    found: dict[str, Any] = runs.policy_output(newest)
    for decision in ("first", "second"):
        assert found[decision].keys() == kept["policy"][decision].keys()
        for key, numbers in kept["policy"][decision].items():
            np.testing.assert_allclose(found[decision][key], numbers, rtol=1e-5, atol=1e-6)
