"""`[evaluator.env]`: another environment for evaluations, with the observations of training."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from apex.cli.main import main
from apex.config import loading
from apex.config.sections import Config
from apex.errors import ConfigError, EnvError
from apex.evaluation import film
from apex.evaluation.trained_policy import load_policy
from apex.launch import prepare
from apex.launch.preflight import try_config
from apex.launch.single_process import SerialRun
from apex.plugins import Extensions
from tests.support.evaluations import BAD, evaluated, publication
from tests.support.services import ThreeLives, prepared

SHORT = "evaluator.env.kwargs={max_episode_steps=5}"
"""Evaluations of at most 5 steps; CartPole lasts 8 or more, whatever the policy does."""
SMALL = ("evaluator.episodes=4", "evaluator.num_envs=2", "algorithm.hidden=[]", "actor.count=1")


def parsed(*settings: str) -> Config:
    return loading.parse(loading.apply_overlay(loading.read_table(settings=settings), gpu=False))


def test_evaluator_plays_with_the_overridden_arguments(tmp_path):
    run = prepared(tmp_path, *SMALL, SHORT)
    reports = evaluated(run, publication(run, 1, 0), make_env=None).reports
    assert [report.returns for report in reports] == [(5.0,) * 4]
    assert run.config().env.kwargs == {}, "training is as before"


def test_serial_evaluation_and_a_checkpoint_play_with_the_overridden_arguments(tmp_path):
    run = prepared(tmp_path, *SMALL, SHORT)
    with closing(SerialRun(run)) as serial:
        serial.evaluate(publication(run, 1, 0))
        serial.trainer.save()
    (line,) = (run.metrics / "evaluator.jsonl").read_text().splitlines()
    assert json.loads(line)["max_return"] == 5.0
    policy = load_policy(run.path)
    assert policy.play(4, seed=1) == [5.0] * 4
    as_trained = [e.episode_return for e in policy.play_episodes(4, seed=1, training_env=True)]
    assert min(as_trained) >= 8.0
    scored = CliRunner().invoke(main, ["eval", str(run.path), "--episodes", "2", "--json"])
    assert json.loads(scored.stdout)["returns"] == [5.0, 5.0]
    more = ["eval", str(run.path), "--episodes", "2", "--json", "--training-env"]
    assert min(json.loads(CliRunner().invoke(main, more).stdout)["returns"]) >= 8.0


def test_film_of_a_checkpoint_shows_the_environment_of_evaluations(tmp_path):
    run = prepared(tmp_path, *SMALL, SHORT)
    with closing(SerialRun(run)) as serial:
        serial.trainer.save()
    policy = load_policy(run.path)
    assert len(list(film.play(policy, episodes=1, seed=1))) == 6  # the first observation too
    assert len(list(film.play(policy, episodes=1, seed=1, training_env=True))) >= 9


def test_overrides_are_merged_with_the_environment_of_training():
    config = parsed(
        "env.id=ALE/Pong-v5", "env.noop_max=7", "env.life_loss_ends=true",
        "evaluator.env.repeat_action_probability=0.25", "evaluator.env.clip_rewards=true",
        "evaluator.env.metrics=['x']",
    )  # fmt: skip
    env = config.evaluation_env
    assert (env.id, env.noop_max, env.repeat_action_probability) == ("ALE/Pong-v5", 7, 0.25)
    assert (env.clip_rewards, env.metrics, env.life_loss_ends) == (True, ("x",), False)
    assert config.env.repeat_action_probability == 0.0 and not config.env.clip_rewards


def test_arguments_are_merged_by_name_but_not_those_of_another_environment():
    training = ("env.id=a:A", "env.kwargs={size=3, goal='near'}")
    same = parsed(*training, "evaluator.env.kwargs.goal=far")
    assert same.evaluation_env.kwargs == {"size": 3, "goal": "far"}
    other = parsed(*training, "evaluator.env.id=b:B", "evaluator.env.kwargs.size=9")
    assert (other.evaluation_env.id, other.evaluation_env.kwargs) == ("b:B", {"size": 9})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluator.env.repeat_action=0.1", "evaluator.env.repeat_action: unknown key; did you"),
        ("evaluator.env.frame_skip=0", "evaluator.env.frame_skip: Expected `int` >= 1, got 0"),
        ("evaluator.env.kwargs=3", "evaluator.env.kwargs: Expected `object`, got `int`"),
        ("evaluator.env.life_loss_ends=true", "evaluator.env.life_loss_ends: evaluations play"),
    ],
)
def test_invalid_overrides_are_refused_by_name(setting, message):
    with pytest.raises(ConfigError) as refused:
        parsed("env.id=CartPole-v1", setting)
    assert str(refused.value).startswith(message)


def test_environment_with_other_spaces_is_refused_before_a_start(tmp_path):
    config = prepare.preset_config("cartpole", ["evaluator.env.id=Acrobot-v1"])
    with pytest.raises(ConfigError) as refused:
        try_config(config)
    assert str(refused.value) == (
        "evaluator.env: Acrobot-v1 must have the observations and actions of training "
        "(CartPole-v1), but has observation_shape (6,) instead of (4,), num_actions 3 instead of "
        "2; change it, or the keys of [evaluator.env]"
    )
    with pytest.raises(EnvError, match=r"^evaluator\.env: .*CartPole-v9"):
        try_config(prepare.preset_config("cartpole", ["evaluator.env.id=CartPole-v9"]))
    run = prepared(tmp_path)
    with pytest.raises(ConfigError, match=r"^evaluator\.env: Acrobot-v1 must have"):
        prepare.resume_run(run, ["evaluator.env.id=Acrobot-v1"])
    assert prepare.resume_run(run, [SHORT]).evaluator.env == {"kwargs": {"max_episode_steps": 5}}


def test_file_of_the_environment_of_evaluations_is_stored_with_its_path(tmp_path, monkeypatch):
    (tmp_path / "own_evaluation.py").write_text(
        "import gymnasium\ndef short():\n"
        "    return gymnasium.make('CartPole-v1', max_episode_steps=3)\n"
    )
    monkeypatch.chdir(tmp_path)
    run = prepared(tmp_path, *SMALL, "evaluator.env.id=own_evaluation.py:short")
    assert run.config().evaluator.env == {"id": f"{tmp_path}/own_evaluation.py:short"}
    reports = evaluated(run, publication(run, 1, 0), make_env=None).reports
    assert [report.returns for report in reports] == [(3.0,) * 4]


def test_environment_of_evaluations_replaces_a_scripts_factory(tmp_path):
    """Action 0 has a return of -9 in `Choice`, and of 15 in the script's `ThreeLives`."""
    file = Path(__file__).parent.parent / "support" / "evaluations.py"
    run = prepared(tmp_path, *SMALL, f"evaluator.env.id={file}:Choice", make_env=ThreeLives)
    (report,) = evaluated(run, publication(run, 1, BAD), make_env=ThreeLives).reports
    assert report.returns == (-9.0,) * 4
    config = prepare.preset_config("cartpole", [SHORT])
    with pytest.raises(ConfigError, match=r"^evaluator\.env\.kwargs: the script's make_env"):
        try_config(config, Extensions(make_env=ThreeLives))
