"""Seeds of evaluation games: no evaluation, run seed or actor shares them."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from apex.acting.exploration import environments_seed, evaluation_seed
from apex.algos.registry import make_algorithm
from apex.config.sections import EnvConfig
from apex.daemons.evaluator.daemon import EvaluatorDaemon
from apex.daemons.learner.parameter_versions import Publication
from apex.envs.activity import Activity
from apex.envs.base import Environments
from apex.envs.registry import EnvFactory
from apex.evaluation import film
from apex.evaluation.trained_policy import load_policy
from apex.launch.single_process import SerialRun
from apex.networks import parameters
from apex.plugins import Extensions
from apex.runs.directory import RunDirectory
from tests.support.clock import Clock
from tests.support.services import prepared, service_of
from tests.support.stand_ins import LearnerStandIn, PollerStandIn

torch.set_num_threads(1)

LARGEST_SEED = 2**31 - 1
"""The largest seed that ALE accepts."""
SMALL = ("evaluator.num_envs=3", "evaluator.episodes=3", "actor.num_envs=3", "replay.min_size=1")
ATARI = (*SMALL, "env.max_episode_frames=120", "env.frame_skip=8")


class SeedRecorder(gym.Env):
    """Records the seeds of its games; a game has one step."""

    observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)
    seeds: list[int] = []  # noqa: RUF012
    broken = False

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            SeedRecorder.seeds.append(int(seed))
        return np.zeros(1, np.float32), {}

    def step(self, action):
        if SeedRecorder.broken:
            raise ValueError("it broke")
        return np.zeros(1, np.float32), 0.0, True, False, {}

    def render(self):
        return np.zeros((4, 4, 3), np.uint8)


@pytest.fixture(autouse=True)
def no_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SeedRecorder, "seeds", [])


def new_seeds() -> list[int]:
    """Return the seeds since the last call."""
    seeds, SeedRecorder.seeds = SeedRecorder.seeds, []
    return seeds


def publication(run: RunDirectory, version: int) -> Publication:
    algorithm: Any = make_algorithm(run.config().algorithm, run.facts().env)
    data = parameters.encode(algorithm.network())
    return Publication(version, 100 * version, 0, 1.0, data, 0)


def evaluated(
    run: RunDirectory, version: int, make_env: EnvFactory | None = None
) -> LearnerStandIn:
    """One start of the evaluator, which plays one version; gives the learner that it reports to."""
    learner = LearnerStandIn()
    with service_of(run, "evaluator") as service:
        evaluator = EvaluatorDaemon(
            service, Extensions(make_env), learner=learner, poller=PollerStandIn()
        )
        with closing(evaluator):
            new_seeds()  # the seeds of making it
            evaluator.evaluate(publication(run, version))
    return learner


def test_game_seeds_of_evaluations_run_seeds_and_actors_never_overlap():
    """For 64 environments each, which have consecutive seeds."""
    firsts = [evaluation_seed(seed, version) for seed in range(20) for version in range(20)]
    firsts += [evaluation_seed(1, version, faults=1) for version in range(20)]
    firsts += [environments_seed(seed, slot, 0) for seed in range(20) for slot in range(20)]
    games = [first + env for first in firsts for env in range(64)]
    assert len(games) == 52_480 == len(set(games))
    assert min(games) >= 0 and max(games) <= LARGEST_SEED


@pytest.mark.parametrize("seed", [0, 1, LARGEST_SEED, 2**63 - 1])
def test_evaluation_seed_is_in_the_range_that_every_environment_accepts(seed):
    for first in (evaluation_seed(seed, 0), evaluation_seed(seed, 2**53, faults=9)):
        assert 0 <= first < 2**30


def test_evaluations_of_one_run_and_of_the_next_seed_share_no_games(tmp_path):
    seeds: list[int] = []
    for seed in (5, 6):
        folder = tmp_path / str(seed)
        folder.mkdir()
        run = prepared(folder, *SMALL, f"run.seed={seed}", make_env=SeedRecorder)
        for version in (1, 2):  # the evaluator is started again before the second
            evaluated(run, version, SeedRecorder)
            seeds += new_seeds()
    assert len(seeds) == 12 == len(set(seeds))


def test_evaluation_repeated_after_a_fault_plays_other_games(tmp_path, monkeypatch):
    def publish(learner: LearnerStandIn) -> Publication | None:
        phase = learner.beats[-1].phase
        SeedRecorder.broken = learner.beats[-1].env_faults == 0
        if learner.reports:
            service.stop()
        return publication(run, left.pop(0)) if left and phase == "idle" else None

    run = prepared(tmp_path, *SMALL, make_env=SeedRecorder)
    monkeypatch.setattr(SeedRecorder, "broken", False)
    clock, left = Clock(), [1, 2]  # the first version only starts the time until an evaluation
    new_seeds()
    with service_of(run, "evaluator") as service:
        learner = LearnerStandIn(publish)
        EvaluatorDaemon(
            service,
            Extensions(SeedRecorder),
            clock,
            learner=learner,
            poller=PollerStandIn(clock.move),
        ).run()
    seeds = new_seeds()
    assert len(learner.reports) == 1 and learner.beats[-1].env_faults == 1
    assert len(seeds) == 6 == len(set(seeds))


def test_evaluator_and_serial_mode_play_the_same_games_of_one_version(tmp_path):
    run = prepared(tmp_path, *SMALL, make_env=SeedRecorder)
    evaluated(run, 7, SeedRecorder)
    expected = new_seeds()
    with closing(SerialRun(run, Extensions(SeedRecorder))) as serial:
        new_seeds()
        serial.evaluate(publication(run, 7))
    assert new_seeds() == expected and len(expected) == 3


def test_trained_policy_and_film_share_no_games_with_the_next_seed(tmp_path, monkeypatch):
    run = prepared(tmp_path, *SMALL, make_env=SeedRecorder)
    with closing(SerialRun(run, Extensions(SeedRecorder))) as serial:
        serial.trainer.save()
    policy = load_policy(run.path)
    monkeypatch.setattr(film, "make_environments", filmed)
    new_seeds()
    seeds = []
    for seed in (1, 2):
        assert policy.play(4, seed, Extensions(SeedRecorder)) == [0.0] * 4
        seeds.append(new_seeds())
        list(film.play(policy, 1, seed))
        assert new_seeds() == seeds[-1][:1], "the first of the scored games"
    assert len({*seeds[0], *seeds[1]}) == 8


def filmed(config: EnvConfig, num_envs: int, *, render: bool, activity: Activity) -> Environments:
    vector = SyncVectorEnv(
        [lambda: SeedRecorder("rgb_array")] * num_envs, autoreset_mode=AutoresetMode.NEXT_STEP
    )
    return Environments(vector, config.id, 0, life_loss_ends=False)


def test_largest_seed_is_evaluated_in_atari_by_the_evaluator(tmp_path):
    run = prepared(tmp_path, *ATARI, f"run.seed={LARGEST_SEED}", preset="pong-fast")
    (report,) = evaluated(run, 1).reports
    assert len(report.returns) == 3


def test_largest_seed_is_evaluated_in_atari_by_serial_mode_and_by_a_trained_policy(tmp_path):
    run = prepared(tmp_path, *ATARI, f"run.seed={LARGEST_SEED}", preset="pong-fast")
    with closing(SerialRun(run)) as serial:
        serial.evaluate(publication(run, 1))
        assert (run.metrics / "evaluator.jsonl").read_text().count("mean_return") == 2
        serial.trainer.save()
    assert len(load_policy(run.path).play(3, seed=2**40)) == 3
