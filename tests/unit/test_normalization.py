"""What networks see in acting, evaluation and learning when a run normalises."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apex.acting.decisions import Inputs
from apex.acting.exploration import LadderPlace
from apex.acting.normalization import MomentCollector
from apex.algos import registry
from apex.algos.base import Algorithm, Learner
from apex.algos.normalizer import COUNT, MEAN, VARIANCE, Normalizer
from apex.algos.registry import make_algorithm
from apex.config.sections import EnvConfig
from apex.envs.spec import ActionBounds, EnvSpec
from apex.errors import ConfigError
from apex.launch.prepare import preset_config
from apex.networks import parameters
from apex.ops.moments import Moments
from tests.support.batches import batch_of, learn, random_sequences, random_transitions
from tests.support.builders import env_spec
from tests.support.walks import small

torch.set_num_threads(1)
CPU = torch.device("cpu")
ON = EnvConfig(id="Test-v0", normalize_observations=True, normalize_rewards=True)
SPEC = env_spec((2,), "float32")
PULL = EnvSpec("Test-v0", (2,), "float32", 0, 0, ActionBounds("float32", (1,), (-2.0,), (2.0,)))
PRESETS = ["cartpole", "cartpole-r2d2", "cartpole-impala", "pendulum-dpg"]
STATISTICS = {
    "observation": Moments(4, np.array([1.0, -1000.0]), np.array([16.0, 1.0])),
    "discounted_return": Moments(4, np.array([50.0]), np.array([16.0])),
}
"""Variances of 4 and 0.25, and of 4 for the returns."""


def algorithm_of(preset: str, *settings: str, env: EnvConfig | None = ON) -> Algorithm:
    """A preset's algorithm with small items and layers."""
    layers = ["hidden=[8]"] if preset != "pendulum-dpg" else ["actor_hidden=[8]"]
    given = [f"algorithm.{setting}" for setting in (*layers, *settings)]
    config = preset_config(preset, [*small(preset), *given])
    return make_algorithm(config.algorithm, PULL if preset == "pendulum-dpg" else SPEC, env=env)


def learner_of(algorithm: Algorithm) -> Learner:
    """A learner that has the statistics."""
    torch.manual_seed(0)
    learner = algorithm.learner(CPU)
    assert learner.normalizer is not None
    learner.normalizer.write(learner.network, STATISTICS)
    return learner


@contextmanager
def seen_by(network: nn.Module) -> Iterator[list[Tensor]]:
    """What the torsos of a network are given."""
    seen: list[Tensor] = []
    torsos = [part for name, part in network.named_modules() if name.endswith("torso")]
    hooks = [
        torso.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        for torso in torsos or [next(network.children())]
    ]
    yield seen
    for hook in hooks:
        hook.remove()


def test_network_sees_distances_from_the_mean_in_standard_deviations_at_most_ten() -> None:
    learner = learner_of(algorithm_of("cartpole"))
    assert isinstance(learner.normalizer, Normalizer)
    raw = torch.tensor([[3.0, -1000.0], [1.0, -999.5], [1e9, -1e9], [-1.0, -1000.25]])
    found = learner.normalizer.observations(learner.network, raw)
    assert found.dtype == torch.float32
    expected = [[1.0, 0.0], [0.0, 1.0], [10.0, -10.0], [-1.0, -0.5]]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


def test_large_mean_leaves_small_differences_intact() -> None:
    """In float32 the mean alone would be wrong by up to 4 standard deviations."""
    learner = learner_of(algorithm_of("cartpole"))
    moments = Moments(100, np.array([1e8 + 3.0, 7.0]), np.array([400.0, 0.0]))
    learner.normalizer.write(learner.network, {**STATISTICS, "observation": moments})
    raw = torch.tensor([[1e8 + 8.0, 7.0], [1e8, 9.0]])
    found = learner.normalizer.observations(learner.network, raw)
    # A number that never varied keeps its scale.
    np.testing.assert_allclose(found, [[2.5, 0.0], [-1.5, 2.0]], rtol=1e-6)


def test_statistics_of_less_than_two_rows_change_nothing() -> None:
    learner = algorithm_of("cartpole").learner(CPU)
    raw = torch.tensor([[3.0, -4.0]])
    one = {name: Moments(1, each.mean, 0.0 * each.m2) for name, each in STATISTICS.items()}
    for moments in ({}, one):
        if moments:
            learner.normalizer.write(learner.network, moments)
        assert torch.equal(learner.normalizer.observations(learner.network, raw), raw)
        assert learner.normalizer.reward_scale(learner.network) == 1.0


def zero_outputs(learner: Learner) -> Learner:
    """Make every value and logit 0."""
    for network in learner.modules().values():
        for module in network.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.weight)
                nn.init.zeros_(module.bias)
    return learner


@pytest.mark.parametrize("preset", ["cartpole", "pendulum-dpg"])
def test_n_step_returns_are_halved_by_a_variance_of_four(preset: str) -> None:
    algorithm = algorithm_of(preset)
    arrays = random_transitions(algorithm, 3)
    arrays["n_step_return"][:] = [6.0, -6.0, 1.0]
    priorities, metrics = learn(zero_outputs(learner_of(algorithm)), arrays)
    np.testing.assert_allclose(priorities, [3.0, 3.0, 0.5], rtol=1e-6)
    assert metrics["td_error"] == pytest.approx(6.5 / 3)


def test_rewards_of_r2d2_are_halved_before_its_rescaling() -> None:
    """n = 1: of the reward 6 remains h(3) = sqrt(4) - 1 + 0.001 x 3 = 1.003."""
    algorithm = algorithm_of("cartpole-r2d2", "n_step=1", "lstm=0")
    arrays = random_sequences(algorithm, 2)
    arrays["reward"][:] = 6.0
    priorities, _ = learn(zero_outputs(learner_of(algorithm)), arrays)
    np.testing.assert_allclose(priorities, [1.003, 1.003], rtol=1e-5)


def test_rewards_of_impala_are_halved() -> None:
    """gamma = 0 and the policy that acted: each value error is half the reward."""
    algorithm = algorithm_of("cartpole-impala", "lstm=0")
    arrays = random_sequences(algorithm, 2)
    arrays["behaviour_logits"][:] = 0.0
    arrays["reward"][:], arrays["discount"][:] = [[6.0], [2.0]], 0.0
    priorities, _ = learn(zero_outputs(learner_of(algorithm)), arrays)
    np.testing.assert_allclose(priorities, [3.0, 1.0], rtol=1e-6)


@pytest.mark.parametrize("preset", PRESETS)
def test_acting_evaluation_and_learning_give_a_network_the_same_numbers(preset: str) -> None:
    algorithm = algorithm_of(preset)
    learner, policy = learner_of(algorithm), algorithm.policy()
    policy.load(parameters.decode(parameters.encode(learner.network)))
    rng = np.random.default_rng(1)
    raw = (rng.normal(size=(64, 2)) * [2.0, 0.5] + [1.0, -1000.0]).astype(np.float32)
    inputs = Inputs(
        raw, np.zeros((64, policy.core_size), np.float32), algorithm.spec.no_actions(64),
        rng.normal(size=64).astype(np.float32),
    )  # fmt: skip
    place = LadderPlace(np.arange(64.0), 64, [(k,) for k in range(64)])
    with seen_by(policy.network) as acted:
        for exploration in (algorithm.exploration(place), None):
            policy.act(inputs, exploration)
    if preset in ("cartpole", "pendulum-dpg"):
        arrays = {**random_transitions(algorithm, 64), "observation": raw, "next_observation": raw}
    else:
        arrays = random_sequences(algorithm, 64)
        arrays["observation"][:] = raw[:, None]
        arrays["last_reward"][:] = inputs.last_rewards[:, None]
        batch = learner.normalizer.batch(learner.network, batch_of(arrays))
        assert torch.equal(batch.last_reward[:, 0], torch.from_numpy(inputs.last_rewards) / 2)
    target = learner.modules().get("target", learner.network)
    with seen_by(learner.network) as learned, seen_by(target) as by_target:
        learn(learner, arrays)
    assert 0.9 < float(acted[0].std()) < 1.1 and learned and by_target
    for seen in (*acted, *learned, *by_target):
        assert rows_of(seen) == rows_of(acted[0])


def rows_of(seen: Tensor) -> set[tuple[float, ...]]:
    return {tuple(row) for row in seen.reshape(-1, 2).tolist()}


def test_target_network_sees_observations_by_the_statistics_of_the_online_network() -> None:
    algorithm = algorithm_of("cartpole", "target_update_period=1000")
    learner = learner_of(algorithm)
    target = learner.modules()["target"]
    arrays = {**random_transitions(algorithm, 1), "next_observation": np.array([[3.0, -999.0]])}
    assert target.get_buffer(COUNT).sum() == 0.0, "its own buffers are those of the last copy"
    with seen_by(target) as seen:
        learn(learner, arrays)
    (only,) = seen
    np.testing.assert_allclose(only, [[1.0, 2.0]], rtol=1e-6)


@pytest.mark.parametrize("preset", ["cartpole", "cartpole-r2d2", "pendulum-dpg"])
def test_initial_priorities_are_in_the_learners_units(preset: str) -> None:
    """Rewards of 6 with zero values, as the learner's errors above."""
    algorithm: Any = algorithm_of(preset, *(["n_step=1"] if preset == "cartpole-r2d2" else []))
    names = list(algorithm.extra_names)
    assert names[-1] == "reward_scale"
    if preset == "cartpole-r2d2":
        length = algorithm.layout().length
        columns = {
            "reward": np.full((1, length), 6.0, np.float32),
            "discount": np.full((1, length), 0.9, np.float32),
            "is_last": np.zeros((1, length), np.uint8),
        }
        extras = ({name: np.zeros((1, length), np.float32) for name in names},)
        expected = 1.003
    else:
        columns = {"n_step_return": np.float32([6.0]), "discount": np.float32([0.9])}
        extras = tuple({name: np.zeros(1) for name in names} for _ in range(2))
        expected = 3.0
    extras[0]["reward_scale"][:] = 0.5
    np.testing.assert_allclose(algorithm.initial_priorities(columns, *extras), expected, rtol=1e-6)
    assert set(columns["n_step_return" if "n_step_return" in columns else "reward"].flat) == {6.0}


@pytest.mark.parametrize("preset", PRESETS)
def test_without_the_settings_classes_and_parameters_are_those_of_before(preset: str) -> None:
    algorithm = algorithm_of(preset, env=EnvConfig(id="Test-v0"))
    assert type(algorithm) in registry.ALGORITHMS.values() and algorithm.normalization is None
    assert algorithm.learner(CPU).normalizer is None
    assert not {MEAN, VARIANCE, COUNT} & algorithm.network().state_dict().keys()
    torch.manual_seed(0)
    plain = algorithm.network().state_dict()
    torch.manual_seed(0)
    normalized = algorithm_of(preset).network().state_dict()
    assert all(torch.equal(normalized[name], tensor) for name, tensor in plain.items())
    assert normalized.keys() - plain.keys() == {MEAN, VARIANCE, COUNT}


def test_only_rewards_or_only_observations_leave_the_other_unchanged() -> None:
    arrays = random_transitions(algorithm_of("cartpole"), 4)
    for key, names in (
        ("normalize_observations", ("n_step_return",)),
        ("normalize_rewards", ("observation", "next_observation")),
    ):
        learner = algorithm_of("cartpole", env=EnvConfig(id="Test-v0", **{key: True})).learner(CPU)
        wanted = {name: STATISTICS[name] for name in learner.normalizer.sizes}
        learner.normalizer.write(learner.network, wanted)
        batch = learner.normalizer.batch(learner.network, batch_of(arrays))
        for name in names:
            assert np.array_equal(getattr(batch, name), arrays[name])


def test_statistics_read_from_a_network_are_those_written() -> None:
    learner = learner_of(algorithm_of("cartpole"))
    for key, moments in learner.normalizer.read(learner.network).items():
        assert moments.count == 4
        np.testing.assert_allclose(moments.mean, STATISTICS[key].mean, rtol=1e-15)
        np.testing.assert_allclose(moments.m2, STATISTICS[key].m2, rtol=1e-15)


def test_algorithms_of_examples_are_normalised_without_a_change() -> None:
    for name in ("examples/munchausen.py:Munchausen", "examples/own_network.py:WideDQN"):
        algorithm = make_algorithm({"name": name}, SPEC, env=ON)
        learner, policy = learner_of(algorithm), algorithm.policy()
        policy.load(learner.network.state_dict())
        raw = np.array([[3.0, -1000.0]], np.float32)
        inputs = Inputs(raw, np.zeros((1, 0), np.float32), np.zeros(1, np.int64), np.ones(1))
        with seen_by(policy.network) as seen:
            decision = policy.act(inputs._replace(last_rewards=np.float32([1.0])), None)
        np.testing.assert_allclose(seen[0], [[1.0, 0.0]], rtol=1e-6)
        np.testing.assert_allclose(decision.extras["reward_scale"], [0.5], rtol=1e-6)
        assert np.isfinite(learn(learner, random_transitions(algorithm, 4))[0]).all()


class OtherNetwork(registry.ApexDQN):
    """A learner whose network is not that of `network`."""

    def learner(self, device: torch.device) -> Learner:
        learner = super().learner(device)
        learner.network = nn.Linear(2, 3)
        return learner


def test_network_made_elsewhere_is_an_error_with_a_remedy() -> None:
    algorithm = make_algorithm({"name": "apex_dqn"}, SPEC, OtherNetwork, env=ON)
    with pytest.raises(ConfigError, match=r"LossLearner: its network was not made by .* set env"):
        algorithm.learner(CPU)


@pytest.mark.parametrize(("shape", "dtype", "stack"), [((5, 5), "uint8", 3), ((4,), "int64", 0)])
def test_images_and_integers_have_nothing_to_normalise(
    shape: tuple[int, ...], dtype: str, stack: int
) -> None:
    spec = env_spec(shape, dtype, stack)
    with pytest.raises(ConfigError, match=r"normalize_observations: .* no vector of numbers"):
        make_algorithm({"name": "apex_dqn"}, spec, env=ON)
    only_rewards = EnvConfig(id="Test-v0", normalize_rewards=True)
    algorithm = make_algorithm({"name": "apex_dqn"}, spec, env=only_rewards)
    assert algorithm.normalization is not None
    assert MomentCollector(algorithm.normalization.sizes).take() == {}


def test_observation_that_fits_no_message_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"has 200000 numbers, at most 131072"):
        make_algorithm({"name": "apex_dqn"}, env_spec((200_000,), "float32"), env=ON)
