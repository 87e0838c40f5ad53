"""Every environment of every set that is installed makes items and is evaluated."""

from __future__ import annotations

import re

import pytest

from apex.config.loading import read_table
from apex.envs.sets import SETS, EnvironmentSet
from apex.errors import ApexError
from apex.launch.environment_report import report
from apex.launch.prepare import configure, prepare_run
from apex.launch.single_process import SerialRun
from benchmarks.environments.trial import NUM_ENVS, try_out
from tests.support.environments_table import environments_table

OTHERS = [one for one in SETS if one.name != "atari"]
"""The sets without Atari, which has a target of its own."""
STEPS = 200
LIMIT = 300
"""Steps after which an evaluation is given up: some tasks last for thousands."""
SMALL = [
    "replay.min_size=16", "replay.capacity=2000", "actor.num_envs=4", "actor.chunk_length=1",
    "learner.batch_size=16", "evaluator.enabled=false", "run.max_env_steps=600",
]  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore")  # the packages' own


def named(one: EnvironmentSet) -> str:
    return one.name


def use(one: EnvironmentSet) -> None:
    if not one.installed:
        pytest.skip(f"{one.package} is not installed: make test-envs SET={one.name}")


@pytest.mark.parametrize("one", OTHERS, ids=named)
def test_every_environment_of_a_set_makes_items_and_is_evaluated(one: EnvironmentSet) -> None:
    use(one)
    faults = {}
    for env_id in one.ids():
        try:
            fits = [fit for fit in report(env_id).fits if not fit.refusal]
            assert fits, "no algorithm fits"
            settings = [f"env.id={env_id}", f"algorithm.name={fits[0].algorithm}"]
            config = configure(read_table(fits[0].preset or None, settings=settings))
            found = try_out(config, steps=STEPS, evaluation_steps=LIMIT)
            assert STEPS <= found.explored < STEPS + NUM_ENVS, found
            assert found.items >= 8, found  # unrolls of 20 steps or more are items, too
            assert found.evaluation is not None or found.evaluated >= LIMIT, found
        except (ApexError, AssertionError) as error:
            faults[env_id] = str(error)
    assert not faults, "\n".join(f"{env_id}: {fault}" for env_id, fault in faults.items())


@pytest.mark.parametrize("one", SETS, ids=named)
def test_documented_number_of_environments_is_that_of_the_set(one: EnvironmentSet) -> None:
    use(one)
    number = re.search(r"\d+", environments_table()[one.name][1])
    assert number is None or int(number[0]) == len(one.ids())


# Other tests train the presets of classic control.
@pytest.mark.parametrize("one", OTHERS[1:], ids=named)
def test_every_preset_of_a_set_trains(one: EnvironmentSet, tmp_path) -> None:
    use(one)
    for preset in one.presets():
        directory = prepare_run(tmp_path / preset, configure(read_table(preset, settings=SMALL)))
        run = SerialRun(directory)
        assert "600" in run.run()
        assert run.trainer.learner_step > 0, preset
