"""The trial of an environment before a run starts: it steps several, to the end of an episode."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from apex.config.sections import EnvConfig
from apex.errors import EnvError
from apex.launch import prepare
from apex.launch.preflight import play_randomly, try_config, try_environment
from apex.plugins import NONE, Extensions
from tests.support.environments import Counted, InfoVaries, PaysMuch, own

OWN = EnvConfig(id="factory:own")


def test_trial_makes_two_environments_but_no_more_than_a_process_of_an_actor_has():
    made: list[int] = []

    def make() -> Counted:
        made.append(1)
        return Counted()

    cases = ("actor.num_envs=8", 2), ("actor.num_envs=1", 1), ("actor.async_envs=true", 1)
    for setting, expected in cases:
        made.clear()
        settings = [setting, f"env.id={OWN.id}"]
        try_config(prepare.preset_config("cartpole", settings), Extensions(make))
        assert len(made) == expected


def test_valid_info_is_not_accused():
    _, spec, observation = try_environment(OWN, Extensions(InfoVaries))
    assert spec.observation_shape == (1,) and observation.shape == (1, 1)


class OneLicence(Counted):
    """Only one at a time can be reset, as with some simulators."""

    used = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        type(self).used += 1
        if self.used > 1:
            raise RuntimeError("licence in use")
        return super().reset(seed=seed)


def test_environments_that_fail_beside_each_other_are_found_before_the_start():
    with pytest.raises(EnvError, match="licence in use"):
        try_environment(OWN, Extensions(OneLicence))


class FailsInSecondEpisode(Counted):
    """Its first episode has seven steps, more than a trial takes at least."""

    length, begun = 7, False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        if self.begun:
            raise RuntimeError("the level is gone")
        self.begun = True
        return super().reset(seed=seed)


def test_trial_plays_on_to_the_next_episode():
    with pytest.raises(EnvError, match="the level is gone"):
        try_environment(OWN, Extensions(FailsInSecondEpisode))


class Long(Counted):
    length = 10**12


def test_trial_of_long_or_slow_episodes_ends():
    environments = own(Long)
    assert play_randomly(environments, environments.reset(0), 3, lambda: 0.0)[0][:, 0].tolist() == [
        50,
        50,
    ]
    # The clock is first read after three steps: at 0.6 s, and after the fourth at 1.2 s.
    slow = iter([0.0, *(0.6 * n for n in range(1, 100))])
    assert play_randomly(environments, environments.reset(0), 3, lambda: next(slow))[0][
        :, 0
    ].tolist() == [4, 4]
    environments.close()


def test_rewards_that_are_too_large_are_named_with_the_remedy_unless_they_are_clipped(caplog):
    for reward in (1e5, 1e12):
        try_environment(OWN, Extensions(partial(PaysMuch, reward)))
    clipped = EnvConfig(id=OWN.id, clip_rewards=True)
    try_environment(clipped, Extensions(partial(PaysMuch, 1e12)))
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("factory:own: rewards reach 1e+12 in the first steps: set env.clip_rew")


def test_settings_that_only_atari_has_are_named_after_the_environment_was_made(caplog):
    with pytest.raises(EnvError, match="write ALE/Pong-v5"):
        try_environment(EnvConfig(id="Pong-v5", noop_max=0), NONE)
    assert caplog.records == []
    try_environment(EnvConfig(id=OWN.id, noop_max=0), Extensions(Counted))
    assert caplog.records[0].getMessage().startswith("env.noop_max: ignored")
