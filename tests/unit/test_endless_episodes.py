"""Episodes that never end: said in the log, and ended by a time limit in every environment."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from apex.acting.agent import greedy
from apex.acting.loop import ActingLoop, play_episodes
from apex.algos.registry import make_algorithm
from apex.config.sections import EnvConfig
from apex.envs.base import Environments
from apex.envs.registry import make_environments
from apex.errors import EnvError
from tests.support.environments import Counted, own

STAY = np.zeros(2, dtype=np.int64)


class Never(Counted):
    length = 10**12


class NeverFirst(Counted):
    """The first one made never ends, the others do after five steps."""

    made = 0

    def __init__(self) -> None:
        super().__init__()
        type(self).made += 1
        self.length = 10**12 if self.made == 1 else 5


def loop_of(environments: Environments, long_episode: int) -> ActingLoop:
    policy = make_algorithm({"name": "apex_dqn"}, environments.spec).policy()
    decider = greedy(policy, environments.spec, EnvConfig(id="own"), environments.num_envs)
    return ActingLoop(environments, decider, seed=1, long_episode=long_episode)


def test_episode_without_an_end_is_logged_with_its_environment_less_and_less_often(caplog):
    environments = own(NeverFirst)
    loop = loop_of(environments, 1500)
    for _ in range(8000):
        loop.step()
    environments.close()
    assert loop.longest_episode == 8000 and loop.episodes == 1333
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(" steps")[0] for line in said] == [
        "environment 0: its episode has not ended after 2000",
        "environment 0: its episode has not ended after 4000",
        "environment 0: its episode has not ended after 8000",
    ]
    assert all("set env.max_episode_steps" in line for line in said)


def test_time_limit_gives_an_evaluation_its_returns():
    environments = own(Never, max_episode_steps=7)
    assert play_episodes(loop_of(environments, 1500), 2, 4, lambda: True) == [7.0] * 4
    environments.close()


def ends(environments: Environments, steps: int) -> list[bool]:
    environments.reset(0)
    taken = [environments.step(STAY[: environments.num_envs]) for _ in range(steps)]
    environments.close()
    assert not any(result.terminated.any() for result in taken)
    return [bool(result.truncated[0]) for result in taken]


@pytest.mark.parametrize(("limit", "expected"), [(3, [2]), (5, [4])])
def test_limit_truncates_environments_of_a_class_and_of_the_registry(limit, expected, tmp_path):
    file = tmp_path / "never.py"
    file.write_text(f"from {__name__} import Never\n")
    assert np.flatnonzero(ends(own(Never, max_episode_steps=limit), 5)).tolist() == expected
    by_file = EnvConfig(id=f"{file}:Never", max_episode_steps=limit)
    assert np.flatnonzero(ends(make_environments(by_file, 1), 5)).tolist() == expected
    registered = EnvConfig(id="Pendulum-v1", max_episode_steps=limit)
    environments = make_environments(registered, 1)
    environments.reset(0)
    action = np.zeros((1, 1), np.float32)
    truncated = [bool(environments.step(action).truncated[0]) for _ in range(5)]
    environments.close()
    assert np.flatnonzero(truncated).tolist() == expected


def test_limit_replaces_the_registered_one_also_if_it_is_longer():
    gym.register("Never-v0", Never, max_episode_steps=2)
    try:
        assert ends(make_environments(EnvConfig(id="Never-v0"), 1), 4) == [
            False, True, False, False,
        ]  # fmt: skip
        longer = EnvConfig(id="Never-v0", max_episode_steps=4)
        assert ends(make_environments(longer, 1), 4) == [False, False, False, True]
        both = EnvConfig(id="Never-v0", max_episode_steps=4, kwargs={"max_episode_steps": 4})
        with pytest.raises(EnvError, match="expected one of them, got both"):
            make_environments(both, 1)
    finally:
        gym.registry.pop("Never-v0")
