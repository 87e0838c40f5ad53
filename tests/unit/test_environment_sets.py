"""Sets of ready environments: their table, `apex envs`, and a sample of each installed set."""

from __future__ import annotations

import configparser
import csv
import json
import re

import pytest
from click.testing import CliRunner

from apex.cli.main import main
from apex.config.loading import preset_names, read_table
from apex.config.sections import EnvConfig
from apex.envs import sets
from apex.envs.registry import make_environments
from apex.envs.sets import SETS, EnvironmentSet, set_of
from apex.errors import EnvError
from apex.launch.environment_report import Fit, Seen, report
from apex.launch.prepare import configure
from benchmarks.environments import atari_games
from benchmarks.environments.trial import Trial, try_out
from tests.support.environments_table import environments_table
from tests.support.paths import ROOT

MISSING = EnvironmentSet(
    "mars", "rovers", package="no_such_package", pattern=r"Mars/.*",
    examples=("Mars/Rover-v1", "Mars/Dust-v1"), extra="mars", registration="no_such_package",
)  # fmt: skip


def apex(*arguments: str):
    return CliRunner().invoke(main, arguments)


@pytest.mark.parametrize(
    ("env_id", "name"),
    [
        ("CartPole-v1", "classic"), ("ALE/Pong-v5", "atari"), ("MinAtar/Freeway-v1", "minatar"),
        ("MiniGrid-DoorKey-8x8-v0", "minigrid"), ("CarRacing-v3", "box2d"),
        ("apex.envs.minigrid:MiniGrid-DoorKey-8x8-v0", "minigrid"), ("Walker2d-v5", "mujoco"),
        ("dm_control/cheetah-run-v0", "dm-control"), ("VizdoomBasic-v1", "vizdoom"),
    ],
)  # fmt: skip
def test_environment_is_found_in_its_set(env_id, name):
    found = set_of(env_id)
    assert found is not None and found.name == name


@pytest.mark.parametrize(
    "env_id", ["FrozenLake-v1", "mine.py:CartPole-v1", "other:ALE/Pong-v5", "CartPole-v0"]
)
def test_environment_of_no_set_is_in_none(env_id):
    assert set_of(env_id) is None


def test_every_set_but_gymnasiums_own_has_an_extra_whose_packages_are_pinned():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = dict(setup["options.extras_require"])
    pinned = {
        re.split("==", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert [one.name for one in SETS if not one.extra] == ["classic"]
    for one in SETS[1:]:
        for requirement in extras[one.extra].split():
            name = re.split(r"[\[><=]", requirement)[0].lower().replace("_", "-")
            assert name in pinned, f"{one.name}: {requirement}"


def test_presets_are_listed_in_the_set_of_their_environment():
    listed = {one.name: one.presets() for one in SETS}
    assert listed["minatar"] == ["minatar"] and listed["dm-control"] == ["dm-control-dpg"]
    assert listed["minigrid"] == ["minigrid"] and listed["vizdoom"] == ["vizdoom"]
    assert listed["mujoco"] == ["ant-dpg", "halfcheetah-dpg"] and "pong" in listed["atari"]
    # It hides CartPole's velocities, so it is an environment of apex's own.
    assert set(preset_names()) - {"cartpole-r2d2"} == {
        one for names in listed.values() for one in names
    }


def test_documented_table_has_every_set_with_its_extra_and_its_presets():
    table = environments_table()
    assert list(table) == [one.name for one in SETS]
    for one in SETS:
        _, _, extra, presets, _ = table[one.name]
        assert extra == (one.extra or "none")
        named = presets.removesuffix(" and others").split(", ")
        assert set(named) <= set(one.presets())
        assert "others" in presets or set(named) == set(one.presets())


def test_environment_of_a_set_that_is_not_installed_is_refused_with_the_command(monkeypatch):
    monkeypatch.setattr(sets, "SETS", (MISSING,))
    with pytest.raises(EnvError, match=r"needs the package no_such_package: pip install 'apex-"):
        make_environments(EnvConfig(id="Mars/Rover-v1"), 1)
    assert MISSING.ids() == ["Mars/Rover-v1", "Mars/Dust-v1"]


def test_envs_list_names_every_set_and_lists_one():
    done = apex("envs", "list")
    assert done.exit_code == 0
    names = [line.split()[0] for line in done.stdout.splitlines() if line[0] != " "]
    assert names == [one.name for one in SETS]
    done = apex("envs", "list", "classic")
    assert done.stdout.split() == [
        "Acrobot-v1", "CartPole-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1",
    ]  # fmt: skip
    done = apex("envs", "list", "atarix")
    assert done.exit_code == 2
    assert "unknown set 'atarix'; expected one of: classic, atari" in done.stderr


def test_envs_list_says_how_to_install_what_is_missing(monkeypatch):
    monkeypatch.setattr(sets, "SETS", (MISSING,))
    done = apex("envs", "list")
    assert "not installed: pip install 'apex-suite[mars]'; such as Mars/Rover-v1" in done.stdout
    done = apex("envs", "list", "mars")
    assert done.stdout.split() == ["Mars/Rover-v1", "Mars/Dust-v1"]
    assert "pip install 'apex-suite[mars]'" in done.stderr
    (row,) = json.loads(apex("envs", "list", "--json").stdout)
    assert (row["installed"], row["presets"]) == (False, [])


def test_report_of_cartpole_has_its_spaces_its_limit_and_who_can_learn_it():
    found = report("CartPole-v1")
    assert found.observation == [Seen("observation", "vector", (4,), "float32", 0)]
    assert (found.actions, found.masked) == ("actions from 0 to 1", False)
    assert (found.set_name, found.step_limit) == ("classic", 500)
    fits = {fit.algorithm: fit for fit in found.fits}
    assert [name for name, fit in fits.items() if not fit.refusal] == ["apex_dqn", "impala", "r2d2"]
    assert fits["apex_dpg"].refusal.startswith("algorithm.name: apex_dpg supports continuous")
    # Two observations of 16 bytes; action, return and discount of 4; learner_step of 8; overhead.
    assert fits["apex_dqn"] == Fit("apex_dqn", "cartpole", "", 2 * 16 + 3 * 4 + 8 + 100, 50_000)
    assert fits["apex_dqn"].table_bytes == 7_600_000
    assert fits["impala"].preset == "cartpole-impala"


def test_report_tries_the_preset_and_the_settings_that_are_given():
    smaller = report("CartPole-v1", ["replay.capacity=2000"], "cartpole-seed")
    assert [fit.capacity for fit in smaller.fits if not fit.refusal] == [2_000] * 3
    assert {fit.preset for fit in smaller.fits} == {"cartpole-seed"}


def test_report_tries_the_defaults_where_the_presets_settings_do_not_suit_an_algorithm():
    """R2D2's overlap of 40 does not fit the unroll length that IMPALA's preset has."""
    given = {fit.algorithm: fit for fit in report("CartPole-v1", (), "cartpole-impala").fits}
    assert "overlap (40) must be less than unroll_length (20)" in given["r2d2"].refusal
    chosen = {fit.algorithm: fit for fit in report("Acrobot-v1", ["algorithm.lstm=8"]).fits}
    assert not chosen["r2d2"].refusal


def test_report_gives_the_remedy_where_an_algorithm_does_not_fit():
    pytest.importorskip("minatar")
    plain = {fit.algorithm: fit for fit in report("MinAtar/Breakout-v1", preset="cartpole").fits}
    assert "too small" in plain["apex_dqn"].refusal and "conv" in plain["apex_dqn"].refusal
    good = report("MinAtar/Breakout-v1")
    assert good.observation == [Seen("observation", "image", (10, 10, 4), "uint8", 1)]
    assert [fit.algorithm for fit in good.fits if fit.refusal] == ["apex_dpg"]


def test_envs_show_prints_text_and_json_and_refuses_what_does_not_exist():
    done = apex("envs", "show", "Pendulum-v1")
    assert done.exit_code == 0 and "vector    3 float32" in done.stdout
    assert "  at most: 200 steps" in done.stdout
    command = "start it: apex run --preset pendulum-dpg --algorithm apex_dpg --env Pendulum-v1"
    assert done.stdout.splitlines()[-1] == command
    own = f"{ROOT}/examples/catch.py:Catch"
    done = apex("envs", "show", own, "--set", "algorithm.hidden=[8]")
    assert done.stdout.splitlines()[0] == "catch.py:Catch"
    command = f"start it: apex run --algorithm apex_dqn --env {own} --set 'algorithm.hidden=[8]'"
    assert done.stdout.splitlines()[-1] == command
    row = json.loads(apex("envs", "show", "Pendulum-v1", "--json").stdout)
    assert [one["algorithm"] for one in row["fits"] if one["fits"]] == ["apex_dpg"]
    assert row["observation"][0]["shape"] == [3] and row["fits"][1]["table_bytes"] > 1e6
    done = apex("envs", "show", "NoSuch-v0")
    assert done.exit_code == 78 and "NoSuch-v0" in done.stderr


SAMPLE = {
    "atari": ["ALE/Pong-v5", "ALE/Breakout-v5", "ALE/MontezumaRevenge-v5"],
    "minatar": [
        "MinAtar/Asterix-v1", "MinAtar/Breakout-v1", "MinAtar/Freeway-v1", "MinAtar/Seaquest-v1",
        "MinAtar/SpaceInvaders-v1",
    ],
    "box2d": ["LunarLander-v3", "BipedalWalker-v3"],
    "mujoco": ["HalfCheetah-v5", "Humanoid-v5", "InvertedPendulum-v5"],
}  # fmt: skip
ALGORITHMS = {"BipedalWalker-v3": "apex_dpg"}
"""Algorithms by environment, where it is not the preset's."""


@pytest.mark.filterwarnings("ignore")  # Box2D's own
@pytest.mark.parametrize("name", SAMPLE)
def test_sample_of_a_set_makes_items_and_is_evaluated(name):
    (one,) = (one for one in SETS if one.name == name)
    if not one.installed:
        pytest.skip(f"{one.package} is not installed")
    assert set(SAMPLE[name]) <= set(one.ids())
    for env_id in SAMPLE[name]:
        preset = "pong-fast" if name == "atari" else one.presets()[0]
        settings = [f"env.id={env_id}", "env.max_episode_frames=400"]
        if env_id in ALGORITHMS:
            settings.append(f"algorithm.name={ALGORITHMS[env_id]}")
        config = configure(read_table(preset, settings=settings))
        found = try_out(config, steps=60, evaluation_steps=120)
        assert found.explored in (60, 61) and found.items >= 40, found
        assert found.evaluation is not None or found.evaluated == 120, found


def test_ale_has_104_games():
    pytest.importorskip("ale_py")
    names = atari_games.games()
    assert len(names) == 104 and {"ALE/UpNDown-v5", "ALE/Pong-v5"} <= set(names)


def test_table_of_games_counts_those_that_work_and_keeps_the_reasons(tmp_path):
    good = Trial("ALE/Pong-v5", 6, 200, 0, 194, -21.0, 500)
    rows = [atari_games.Row("ALE/Pong-v5", good), atari_games.Row("ALE/X-v5", None, "no such game")]
    atari_games.write(tmp_path, rows)
    text = (tmp_path / "atari_games.md").read_text()
    assert "**1 of 2 games work.**" in text
    assert "| ALE/Pong-v5 | works | 6 | 200 | 0 | 194 | -21 | 500 |" in text
    with (tmp_path / "atari_games.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["result"] for row in table] == ["works", "no such game"]


def test_game_that_does_not_exist_is_a_row_with_its_reason():
    pytest.importorskip("ale_py")
    (row,) = atari_games.rows(["ALE/NoSuchGame-v5"])
    assert row.trial is None and "ALE has no such game" in row.fault
