"""Scalars of `info` that are measured: read at the last step of episodes, and averaged."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from apex.acting.agent import greedy
from apex.acting.decisions import Decision, Inputs, exploration_metrics
from apex.acting.episodes import Episode, metric_columns, metric_means, metrics_of
from apex.acting.exploration import EpsilonGreedy, GaussianNoise, Sampled
from apex.acting.loop import ActingLoop, play_episodes
from apex.config.conversion import convert
from apex.config.sections import EnvConfig
from apex.envs.info_metrics import InfoMetrics
from apex.errors import ConfigError
from tests.support.environments import Counted, own


class ZeroPolicy:
    """Always takes the action 0."""

    core_size = 0

    def act(self, inputs: Inputs, exploration: object) -> Decision:
        return Decision(np.zeros(len(inputs.core_state), np.int64), inputs.core_state, {})


class Reaching(Counted):
    """Succeeds in every second episode, and reports a distance in the last step only."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def reset(self, **kwargs: Any) -> Any:
        self.number += 1
        return super().reset(**kwargs)

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, _ = super().step(action)
        info = {"success": self.number % 2 == 0 and terminated, "secret": "x"}
        if terminated:
            info["distance"] = np.array([self.number / 4])
        return observation, reward, terminated, truncated, info


def played(**fields: Any) -> list[Episode]:
    """Four episodes of `Reaching`, two in each of two environments."""
    environments = own(Reaching, **fields)
    decider = greedy(ZeroPolicy(), environments.spec, EnvConfig(id="own"), 2)
    episodes = play_episodes(ActingLoop(environments, decider, seed=1), 2, 4, lambda: True)
    environments.close()
    assert episodes is not None
    return episodes


def test_success_is_measured_without_being_named():
    episodes = played()
    assert [episode.metrics for episode in episodes] == [{"success": 0.0}, {"success": 1.0}] * 2
    assert [episode.episode_return for episode in episodes] == [5.0] * 4


def test_named_scalar_is_taken_from_the_last_step_of_each_episode():
    episodes = played(metrics=("distance",))
    assert [episode.metrics["distance"] for episode in episodes] == [0.25, 0.5, 0.25, 0.5]
    assert metric_means(e.metrics for e in episodes) == {"success": 0.5, "distance": 0.375}


def test_loop_keeps_the_metrics_of_its_recent_episodes():
    environments = own(Reaching)
    decider = greedy(ZeroPolicy(), environments.spec, EnvConfig(id="own"), 2)
    loop = ActingLoop(environments, decider, seed=1)
    finished = [episode for _ in range(12) for episode in loop.step()]
    environments.close()
    assert [(e.env, e.metrics["success"]) for e in finished] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert metric_means(loop.recent_metrics) == {"success": 0.5}


def test_name_that_never_appears_is_one_warning_with_the_keys_that_came(caplog):
    played(metrics=("distanze", "secret", "distance"))
    (record,) = caplog.records
    assert record.getMessage() == (
        "own: env.metrics: info had no number 'distanze' or 'secret' up to the end of an episode; "
        "its keys were: distance, secret, success. Name one of these, or let the environment "
        "report it with the last step of each episode"
    )


@pytest.mark.parametrize(
    ("values", "mask", "expected"),
    [
        ([1, 2], None, [1.0, 2.0]),
        ([True, None], None, [1.0, np.nan]),
        (np.array([0.5, 7.0]), np.array([True, False]), [0.5, np.nan]),
        ([np.float32(0.5), np.array([[3]])], None, [0.5, 3.0]),
        ([np.inf, np.nan], None, [np.nan, np.nan]),
        (["won", np.zeros(2)], None, [np.nan, np.nan]),
        (np.zeros((2, 1)), None, [0.0, 0.0]),
    ],
)
def test_only_single_finite_numbers_count(values, mask, expected):
    infos = {"x": values} if mask is None else {"x": values, "_x": mask}
    read = InfoMetrics(["x"], 2, "own").read(infos)
    np.testing.assert_array_equal(read["x"], np.array(expected))


def test_episodes_without_a_metric_do_not_count_in_its_mean():
    means = metric_means([{"a": 1.0}, {}, {"a": 2.0, "b": 5.0}])
    assert means == {"a": 1.5, "b": 5.0}
    record = {"mean_return": 3.0, **metric_columns(means), "info/c": None}
    assert record["info/a"] == 1.5 and metrics_of(record) == {"a": 1.5, "b": 5.0}


def test_mean_of_huge_finite_values_is_finite():
    assert metric_means([{"a": 1.5e308}, {"a": 1.5e308}]) == {"a": 1.5e308}


def test_more_names_than_a_heartbeat_carries_are_refused():
    raw = {"id": "own", "metrics": [f"m{number}" for number in range(33)]}
    with pytest.raises(ConfigError, match=r"^env\.metrics: Expected `array` of length <= 32"):
        convert(raw, EnvConfig, "env")


def test_explorations_have_curves_and_one_without_metrics_has_none():
    ladder = EpsilonGreedy(np.array([0.1, 0.3]), 2, [(0,), (1,)])
    assert exploration_metrics(ladder) == {"exploration/epsilon": pytest.approx(0.2)}
    bounds = np.array([-1.0]), np.array([1.0])
    noise = GaussianNoise(np.array([0.2, 0.4]), *bounds, [(0,), (1,)])
    assert exploration_metrics(noise) == {"exploration/sigma": pytest.approx(0.3)}
    assert exploration_metrics(Sampled([(0,)])) == exploration_metrics(None) == {}


class OnGpu:
    """As a tensor of a GPU: it does not become an array."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")


@pytest.mark.parametrize("value", [OnGpu(), [[1], [1, 2]]])
def test_success_that_is_no_number_is_not_measured_and_no_fault(value: Any) -> None:
    read = InfoMetrics((), 2, "env").read({"success": [value, True]})
    np.testing.assert_array_equal(read["success"], [np.nan, 1.0])
