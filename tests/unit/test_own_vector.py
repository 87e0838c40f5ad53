"""Vector environments that users bring: stepped as they are, converted exactly, or refused."""

from __future__ import annotations

import logging
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv

from apex.config.sections import EnvConfig
from apex.envs.base import Environments
from apex.envs.registry import make_environments
from apex.errors import EnvError, EnvFaultError

STEPS = 200


class Measured(gym.Wrapper):
    """CartPole that reports its number of steps in each `info`, and `success` in the last one."""

    def reset(self, **kwargs: Any) -> Any:
        self.steps = 0
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        *result, info = super().step(action)
        self.steps += 1
        info = {**info, "steps": self.steps}
        if result[2]:
            info["success"] = self.steps % 2 == 0
        return *result, info


def cartpole() -> gym.Env:
    return Measured(gym.make("CartPole-v1", max_episode_steps=30))


def of_mode(mode: AutoresetMode) -> Any:
    """A factory of gymnasium's own vector environment."""
    return lambda num_envs: SyncVectorEnv([cartpole] * num_envs, autoreset_mode=mode)


def own(factory: Any, num_envs: int = 2, **fields: Any) -> Environments:
    return make_environments(EnvConfig(id="own", **fields), num_envs, factory)


def played(environments: Environments, steps: int = STEPS) -> list[Any]:
    """Everything that environments return to the same random actions."""
    rng = np.random.default_rng(0)
    returned: list[Any] = [environments.reset(seed=3)]
    for _ in range(steps):
        actions = environments.spec.random_actions(environments.num_envs, rng)
        result = environments.step(actions)
        returned += [
            result.observations, result.rewards, result.terminated, result.truncated,
            *(result.metrics[name] for name in ("steps", "success") if name in result.metrics),
        ]  # fmt: skip
    environments.close()
    return returned


def steps(environments: Environments, count: int) -> None:
    """Take the action 0 so many times."""
    for _ in range(count):
        environments.step(np.zeros(environments.num_envs, np.int64))


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_of_any_mode_returns_what_its_environments_would_one_by_one(mode):
    expected = played(own(cartpole, 3, metrics=("steps",)))
    assert sum(bool(flags.any()) for flags in expected if flags.dtype == np.bool_) > 10
    found = played(own(of_mode(mode), 3, metrics=("steps",)))
    assert len(found) == len(expected)
    for one, other in zip(found, expected):
        np.testing.assert_array_equal(one, other)


def test_last_observation_and_first_one_of_a_same_step_vector_both_arrive():
    """CartPole ends beyond ±2.4 or 0.2095 rad, and begins within ±0.05."""
    environments = own(of_mode(AutoresetMode.SAME_STEP), 2)
    environments.reset(seed=1)
    ended = np.zeros(2, np.bool_)
    ends = 0
    for _ in range(60):
        before, result = ended, environments.step(np.zeros(2, np.int64))
        assert (np.abs(result.observations[before]) <= 0.05).all()
        assert (result.rewards == ~before).all()
        assert (np.abs(result.observations[result.terminated][:, 2]) > 0.2095).all()
        ended = result.terminated
        ends += int(ended.sum())
    environments.close()
    assert ends >= 8


def test_vector_that_is_stepped_one_by_one_says_so(caplog):
    with caplog.at_level(logging.INFO, "apex.envs"):
        own(of_mode(AutoresetMode.SAME_STEP), 3).close()
    assert "SameStep: stepped as 3 vectors of one environment" in caplog.text


class Copies(VectorEnv):
    """N counters in one array, which each step changes in place, as JAX or EnvPool may do."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(self, num_envs: int, length: int = 4, **faults: Any) -> None:
        self.num_envs, self._length, self._faults = num_envs, length, faults
        self.single_observation_space = gym.spaces.Box(0, 100, (2,), np.float32)
        self.single_action_space = gym.spaces.Discrete(2)
        self.observation_space = gym.vector.utils.batch_space(
            self.single_observation_space, num_envs
        )
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)
        self._counts = np.zeros((num_envs, 2), np.float32)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        self._counts[:] = 0
        return self._counts, {}

    def step(self, actions: Any) -> Any:
        begins = self._counts[:, 0] == self._length
        self._counts += 1
        self._counts[begins] = 0
        ended = self._counts[:, 0] == self._length
        result = {
            "observations": self._counts, "rewards": np.where(begins, 0.0, 2.0),
            "terminated": ended, "truncated": np.zeros(self.num_envs, np.bool_),
            "info": {"success": ended, "_success": ended},
            **self._faults,
        }  # fmt: skip
        return tuple(result.values())


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_value_of_info_for_all_environments_together_is_no_fault(mode):
    info = {"success": np.float32(0.5), "time": 3, "final_obs": np.zeros((1, 2))}

    class Together(Copies):
        metadata = {"autoreset_mode": mode}  # noqa: RUF012

    environments = own(lambda num_envs: Together(num_envs, info=info), 2)
    environments.reset(seed=0)
    metrics = [environments.step(np.zeros(2, np.int64)).metrics for _ in range(3)]
    expected = {} if mode == AutoresetMode.NEXT_STEP else {"success": [0.5, 0.5]}
    assert [{k: v.tolist() for k, v in one.items()} for one in metrics] == [expected] * 3


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_vector_whose_spaces_cannot_be_used_is_closed(mode):
    opened = []

    class Texts(Copies):
        metadata = {"autoreset_mode": mode}  # noqa: RUF012

        def __init__(self, num_envs: int) -> None:
            super().__init__(num_envs)
            self.single_observation_space = gym.spaces.Text(5)
            opened.append(self)

    with pytest.raises(EnvError):
        own(Texts)
    assert opened and all(one.closed for one in opened)


def test_what_a_vector_returns_is_copied():
    environments = own(Copies)
    first = environments.reset(seed=0)
    results = [environments.step(np.zeros(2, np.int64)) for _ in range(6)]
    assert first.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert [result.observations[0, 0] for result in results] == [1, 2, 3, 4, 0, 1]
    assert [float(result.rewards[1]) for result in results] == [2, 2, 2, 2, 0, 2]
    assert results[3].metrics["success"].tolist() == [1.0, 1.0]
    assert np.isnan(results[2].metrics["success"]).all()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"rewards": [1.0]}, r"returned `rewards` as float64 \(1,\); return an array with one n"),
        ({"rewards": np.array([np.nan, 0.0])}, r"returned rewards that are not within ±1e\+30"),
        ({"terminated": np.array([None, None])}, "returned `terminated` as object"),
        ({"truncated": False}, r"returned `truncated` as bool \(\); return an array with one bool"),
        ({"observations": np.zeros(2)}, r"observations of shape \(2,\), but 2 of its .* \(2, 2\)"),
        ({"observations": np.array([["a", "b"]] * 2)}, "which its observation_space of float32"),
        ({"observations": np.full((2, 2), np.inf)}, "an observation that is not finite"),
        ({"info": [{}, {}]}, "returned an info that is a list; return a dict"),
        ({"more": 1}, "returned a tuple of 6; step must return"),
    ],
)  # fmt: skip
def test_invalid_value_of_a_vector_is_an_error_with_its_remedy(fault, message):
    environments = own(lambda num_envs: Copies(num_envs, **fault))
    environments.reset(seed=0)
    with pytest.raises(EnvFaultError, match=message):
        environments.step(np.zeros(2, np.int64))


def test_vector_that_names_the_wrong_mode_is_found_out():
    class Wrong(SyncVectorEnv):
        def __init__(self, num_envs: int) -> None:
            super().__init__([cartpole] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
            self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    environments = own(Wrong)
    environments.reset(seed=0)
    with pytest.raises(EnvFaultError, match=r"returned the reward 1 or an end for env.*SAME_STEP"):
        steps(environments, 60)
    environments.close()


def test_same_step_vector_without_last_observations_is_an_error():
    class Lost(Copies):
        metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012

    environments = own(Lost)
    environments.reset(seed=0)
    with pytest.raises(EnvFaultError, match=r"returned no info\['final_obs'\] at the end"):
        steps(environments, 4)


class Batched(gym.vector.VectorWrapper):
    """Gives the last observations as a batch of dictionaries, as a step's."""

    def step(self, actions: Any) -> Any:
        *result, infos = self.env.step(actions)
        if "final_obs" in infos:
            last = infos["final_obs"][0]
            infos = {**infos, "final_obs": {name: part[None] for name, part in last.items()}}
        return *result, infos


@pytest.mark.parametrize("wrap", [lambda vector: vector, Batched])
def test_last_observation_of_named_parts_may_be_one_of_an_array_or_of_a_batch(wrap):
    space = gym.spaces.Dict({"cart": gym.make("CartPole-v1").observation_space})

    def parts() -> gym.Env:
        return gym.wrappers.TransformObservation(cartpole(), lambda seen: {"cart": seen}, space)

    same = AutoresetMode.SAME_STEP
    one_by_one = own(parts, 1)
    vector = own(lambda num_envs: wrap(SyncVectorEnv([parts] * num_envs, autoreset_mode=same)), 1)
    first, second = one_by_one.reset(seed=3), vector.reset(seed=3)
    ends = 0
    for _ in range(60):
        np.testing.assert_array_equal(first["cart"], second["cart"])
        results = [each.step(np.zeros(1, np.int64)) for each in (one_by_one, vector)]
        first, second = (result.observations for result in results)
        ends += int(results[1].terminated[0])
    assert ends >= 4


def test_factory_that_does_not_make_what_it_was_asked_for_is_refused():
    with pytest.raises(EnvError, match="own: asked for num_envs=2, got a vector of 3 env"):
        own(lambda num_envs: Copies(3))
    with pytest.raises(EnvError, match=r"must return a gymnasium\.vector\.VectorEnv, got a T"):
        own(lambda num_envs: gym.make("CartPole-v1"))
    with pytest.raises(EnvError, match=r"env\.max_episode_steps = 9: a vector environment has its"):
        own(Copies, max_episode_steps=9)

    class Modeless(Copies):
        metadata = {}  # noqa: RUF012

    with pytest.raises(EnvError, match=r"expected metadata\['autoreset_mode'\] to be one of"):
        own(Modeless)


def test_environment_that_takes_num_envs_for_itself_is_made_one_at_a_time():
    class Arena(gym.Wrapper):
        def __init__(self, num_envs: int = 7) -> None:
            super().__init__(gym.make("CartPole-v1"))

    environments = own(Arena, 3)
    assert environments.reset(seed=0).shape == (3, 4)
    environments.close()


def test_file_may_have_a_factory_of_vectors_with_arguments(tmp_path):
    (tmp_path / "own_vectors.py").write_text(
        "from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv\n"
        "def make(num_envs, limit):\n"
        "    return CartPoleVectorEnv(num_envs, max_episode_steps=limit)\n"
    )
    config = EnvConfig(id=f"{tmp_path}/own_vectors.py:make", kwargs={"limit": 3})
    environments = make_environments(config, 5)
    environments.reset(seed=0)
    ends = [environments.step(np.zeros(5, np.int64)).truncated for _ in range(3)]
    assert [end.tolist() for end in ends] == [[False] * 5, [False] * 5, [True] * 5]


def test_id_with_nothing_but_a_vector_entry_point_is_made_by_make_vec():
    gym.register("OnlyVectors-v0", vector_entry_point=CartPoleVectorEnv)
    try:
        environments = make_environments(EnvConfig(id="OnlyVectors-v0"), 4)
        assert environments.reset(seed=0).shape == (4, 4)
        assert environments.step(np.zeros(4, np.int64)).rewards.tolist() == [1.0] * 4
    finally:
        gym.registry.pop("OnlyVectors-v0")


def test_discrete_observations_of_a_vector_become_one_hot():
    class Line(Copies):
        def __init__(self, num_envs: int) -> None:
            super().__init__(num_envs)
            self.single_observation_space = gym.spaces.Discrete(5)
            self.observation_space = gym.vector.utils.batch_space(gym.spaces.Discrete(5), num_envs)

        def reset(self, **kwargs: Any) -> Any:
            observations, info = super().reset(**kwargs)
            return observations[:, 0].astype(np.int64), info

        def step(self, actions: Any) -> Any:
            observations, *rest = super().step(actions)
            return observations[:, 0].astype(np.int64), *rest

    environments = own(Line)
    assert environments.reset(seed=0).tolist() == [[1, 0, 0, 0, 0]] * 2
    assert environments.step(np.zeros(2, np.int64)).observations.tolist() == [[0, 1, 0, 0, 0]] * 2
