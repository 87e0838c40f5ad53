"""Ape-X DQN: one update against a computation by hand; network, schema, settings."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from apex.acting.decisions import Inputs
from apex.acting.exploration import EpsilonGreedy
from apex.algos.apex_dqn import ApexDQN
from apex.algos.loss_learner import LossLearner
from apex.algos.registry import check_schema, make_algorithm
from apex.config.sections import ReplayConfig
from apex.data.chunks import Items
from apex.envs.spec import EnvSpec
from apex.errors import ConfigError, CorruptItemsError, RunError
from apex.networks.dueling import DuelingQNetwork
from apex.ops.rmsprop import RMSProp
from tests.support.batches import learn
from tests.support.builders import env_spec

torch.set_num_threads(1)
SPEC = env_spec((3,), "float32", actions=4)
CPU = torch.device("cpu")
Parameters = dict[str, Tensor]


def make_learner(spec: EnvSpec = SPEC, seed: int = 0, **settings: object) -> LossLearner:
    torch.manual_seed(seed)
    defaults = {"hidden": (), "stream_hidden": (5,), "conv": ((2, 3, 1),)}
    learner = ApexDQN(ApexDQN.Config(**{**defaults, **settings}), spec).learner(CPU)
    assert isinstance(learner, LossLearner)
    return learner


def make_batch(seed: int, size: int = 8, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "observation": rng.normal(size=(size, 3)).astype(np.float32),
        "next_observation": rng.normal(size=(size, 3)).astype(np.float32),
        "action": rng.integers(0, 4, size).astype(np.int32),
        "n_step_return": (scale * rng.normal(size=size)).astype(np.float32),
        "discount": rng.choice([0.0, 0.9, 0.729], size).astype(np.float32),
        "probability": rng.uniform(0.001, 0.1, size).astype(np.float32),
        "learner_step": np.zeros(size, dtype=np.int64),
    }


def snapshot(network: torch.nn.Module) -> Parameters:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def assert_same(left: Parameters, right: Parameters) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def q_by_hand(p: Parameters, x: Tensor) -> Tensor:
    """V + A - mean A, each stream one hidden layer with ReLU."""
    hidden_v = torch.clamp(x @ p["value.0.weight"].T + p["value.0.bias"], min=0)
    hidden_a = torch.clamp(x @ p["advantage.0.weight"].T + p["advantage.0.bias"], min=0)
    value = hidden_v @ p["value.2.weight"].T + p["value.2.bias"]
    advantage = hidden_a @ p["advantage.2.weight"].T + p["advantage.2.bias"]
    return value + advantage - advantage.sum(1, keepdim=True) / advantage.shape[1]


def loss_by_hand(p: Parameters, target: Parameters, batch, loss: str) -> tuple[Tensor, Tensor]:
    """The weighted loss and delta, item by item."""
    deltas, losses = [], []
    weights = (batch["probability"].astype(float) * 1e5) ** -0.4
    weights = weights / weights.max()
    for i in range(len(weights)):
        s_t = torch.from_numpy(batch["next_observation"][i : i + 1]).double()
        s_tm1 = torch.from_numpy(batch["observation"][i : i + 1]).double()
        best = int(q_by_hand(p, s_t)[0].argmax())
        bootstrap = q_by_hand(target, s_t)[0, best].item()
        goal = float(batch["n_step_return"][i]) + float(batch["discount"][i]) * bootstrap
        delta = goal - q_by_hand(p, s_tm1)[0, batch["action"][i]]
        linear = loss == "huber" and abs(delta.item()) > 1
        deltas.append(delta.detach())
        losses.append(weights[i] * (delta.abs() - 0.5 if linear else delta**2 / 2))
    return torch.stack(losses).sum() / len(losses), torch.stack(deltas)


def adam_by_hand(rate: float, epsilon: float) -> Callable[[Tensor, dict], Tensor]:
    def step(g: Tensor, s: dict) -> Tensor:
        s["t"] = s.get("t", 0) + 1
        s["m"] = 0.9 * s.get("m", 0) + 0.1 * g
        s["v"] = 0.999 * s.get("v", 0) + 0.001 * g**2
        m, v = s["m"] / (1 - 0.9 ** s["t"]), s["v"] / (1 - 0.999 ** s["t"])
        return -rate * m / (v**0.5 + epsilon)

    return step


def centered_rmsprop_by_hand(rate: float, epsilon: float) -> Callable[[Tensor, dict], Tensor]:
    def step(g: Tensor, s: dict) -> Tensor:
        s["square"] = 0.95 * s.get("square", 1) + 0.05 * g**2
        s["mean"] = 0.95 * s.get("mean", 0) + 0.05 * g
        return -rate * g / (s["square"] - s["mean"] ** 2 + epsilon) ** 0.5

    return step


@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
@pytest.mark.parametrize("max_norm", [0.05, 1e6], ids=["clipped", "not_clipped"])
def test_updates_match_a_computation_by_hand(loss, optimizer, max_norm):
    learner = make_learner(
        loss=loss, optimizer=optimizer, max_gradient_norm=max_norm, learning_rate=0.01,
        optimizer_epsilon=1e-4, target_update_period=2,
    )  # fmt: skip
    make_step = adam_by_hand if optimizer == "adam" else centered_rmsprop_by_hand
    step, states = make_step(0.01, 1e-4), {}
    p = {k: v.double().requires_grad_() for k, v in snapshot(learner.network).items()}
    target = {k: v.detach().clone() for k, v in p.items()}
    for number in range(4):
        batch = make_batch(number, scale=3.0)
        expected_loss, deltas = loss_by_hand(p, target, batch, loss)
        gradients = dict(zip(p, torch.autograd.grad(expected_loss, list(p.values()))))
        norm = float(sum((g**2).sum() for g in gradients.values()) ** 0.5)
        assert norm > 0.05
        scale = min(1.0, max_norm / norm)
        with torch.no_grad():
            for name, g in gradients.items():
                p[name] += step(g * scale, states.setdefault(name, {}))
        if number % 2 == 1:
            target = {k: v.detach().clone() for k, v in p.items()}
        priorities, metrics = learn(learner, batch)
        np.testing.assert_allclose(priorities, deltas.abs().numpy(), rtol=1e-4, atol=1e-6)
        assert float(metrics["loss"]) == pytest.approx(expected_loss.item(), rel=1e-4)
        assert float(metrics["gradient_norm"]) == pytest.approx(norm, rel=1e-4)
        for name, tensor in learner.network.state_dict().items():
            np.testing.assert_allclose(tensor, p[name].detach(), rtol=1e-3, atol=2e-5)


def test_priorities_are_unclipped_absolute_td_errors():
    batch = make_batch(0) | {"n_step_return": np.full(8, -500.0, dtype=np.float32)}
    priorities, _ = learn(make_learner(loss="huber"), batch)
    assert priorities.dtype == np.float64 and (priorities > 480).all()


def test_target_starts_equal_to_online():
    learner = make_learner()
    assert_same(snapshot(learner.network), snapshot(learner.target))


def test_target_is_copied_every_period_and_constant_in_between():
    learner = make_learner(target_update_period=3, learning_rate=0.01)
    initial = snapshot(learner.network)
    for updates in range(1, 8):
        before = snapshot(learner.target)
        learn(learner, make_batch(updates))
        if updates % 3 == 0:
            assert_same(snapshot(learner.target), snapshot(learner.network))
            assert not torch.equal(before["value.0.weight"], learner.target.value[0].weight)
        else:
            assert_same(snapshot(learner.target), before)
    assert not torch.equal(initial["value.0.weight"], learner.target.value[0].weight)


def test_target_takes_no_gradient():
    learner = make_learner()
    learn(learner, make_batch(0))
    assert all(p.grad is None and not p.requires_grad for p in learner.target.parameters())


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_gradient_that_is_not_finite_is_skipped_and_counted(bad, optimizer):
    learner, untouched = (make_learner(optimizer=optimizer) for _ in range(2))
    poisoned = make_batch(0)
    poisoned["n_step_return"][3] = bad
    before = snapshot(learner.network)
    priorities, metrics = learn(learner, poisoned)
    assert metrics["skipped_updates"] == 1.0
    assert_same(before, snapshot(learner.network))
    assert not np.isfinite(priorities[3]) and np.isfinite(np.delete(priorities, 3)).all()
    _, metrics = learn(learner, make_batch(1))
    learn(untouched, make_batch(1))
    assert metrics["skipped_updates"] == 1.0
    assert_same(snapshot(untouched.network), snapshot(learner.network))


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_state_dict_round_trip_continues_bit_equal(optimizer):
    settings = {"optimizer": optimizer, "target_update_period": 4}
    learner = make_learner(seed=1, **settings)
    for number in range(6):
        learn(learner, make_batch(number))
    file = io.BytesIO()
    torch.save(learner.state_dict(), file)
    file.seek(0)
    resumed = make_learner(seed=2, **settings)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for number in range(6, 12):
        expected, _ = learn(learner, make_batch(number))
        priorities, _ = learn(resumed, make_batch(number))
        assert (priorities == expected).all()
        assert_same(snapshot(learner.network), snapshot(resumed.network))
        assert_same(snapshot(learner.target), snapshot(resumed.target))


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_resumed_learner_keeps_saved_averages_and_takes_the_configured_learning_rate(optimizer):
    before = make_learner(optimizer=optimizer, learning_rate=0.1)
    learn(before, make_batch(0))
    after = make_learner(optimizer=optimizer, learning_rate=0.0025)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    old, start = snapshot(before.network), snapshot(after.network)
    learn(before, make_batch(1))
    learn(after, make_batch(1))
    for name, tensor in after.network.state_dict().items():
        moved = before.network.state_dict()[name] - old[name]
        np.testing.assert_allclose(tensor - start[name], moved / 40, rtol=2e-2, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "rmsprop"])
def test_learning_rate_falls_in_a_straight_line_and_then_stays(optimizer):
    settings = {"learning_rate_decay_steps": 4, "final_learning_rate_fraction": 0.2}
    learner = make_learner(optimizer=optimizer, learning_rate=0.1, **settings)
    batch = make_batch(0)
    rates = [learn(learner, batch)[1]["learning_rate"] for _ in range(3)]
    resumed = make_learner(optimizer=optimizer, learning_rate=0.1, **settings)
    resumed.load_state_dict(learner.state_dict())
    rates += [learn(resumed, batch)[1]["learning_rate"] for _ in range(3)]
    assert rates == pytest.approx([0.1, 0.08, 0.06, 0.04, 0.02, 0.02])
    still = make_learner(optimizer=optimizer, learning_rate=1e-30)
    still.load_state_dict(resumed.state_dict())
    learn(still, batch)
    assert_same(
        snapshot(still.network), snapshot(resumed.network)
    )  # the rate is the configured one


def test_loaded_parameters_reach_the_target_too():
    learner, other = make_learner(seed=1), make_learner(seed=2)
    learner.load_parameters(other.network.state_dict())
    assert_same(snapshot(learner.network), snapshot(other.network))
    assert_same(snapshot(learner.target), snapshot(other.network))


def make_network(shape: tuple[int, ...], standardize: bool = False) -> DuelingQNetwork:
    torch.manual_seed(0)
    spec = env_spec(shape, stack=2)
    return DuelingQNetwork(spec, [(4, 3, 2), (3, 2, 1)], (6,), (5,), standardize)


def image_q_by_hand(network: DuelingQNetwork, planes: Tensor) -> Tensor:
    """The network on `[B, planes, H, W]` floats already scaled to [0, 1]."""
    p = network.state_dict()
    x = planes
    for layer, stride in ((0, 2), (2, 1)):
        weight, bias = (p[f"torso.convolutions.{layer}.{kind}"] for kind in ("weight", "bias"))
        x = torch.relu(torch.nn.functional.conv2d(x, weight, bias, stride))
    x = torch.relu(x.flatten(1) @ p["shared.0.weight"].T + p["shared.0.bias"])
    return q_by_hand(p, x)


@pytest.mark.parametrize("standardize", [False, True])
@pytest.mark.parametrize("shape", [(12, 10), (12, 10, 3), (12, 10, 1), (3, 12, 10)])
def test_image_network_scales_bytes_once_and_convolves_every_plane(shape, standardize):
    network = make_network(shape, standardize)
    rng = np.random.default_rng(0)
    frames = torch.from_numpy(rng.integers(0, 256, (5, 2, *shape)).astype(np.uint8))
    scaled = frames.double() / 255
    if shape[-1] in (1, 3):  # channels last: to [B, stack, C, H, W]
        scaled = scaled.permute(0, 1, 4, 2, 3)
    planes = scaled.reshape(5, -1, 12, 10).float()
    if standardize:
        one = planes.flatten(1).numpy()  # an image's frames and colours together
        one = (one - one.mean(1, keepdims=True)) / one.std(1, keepdims=True)
        planes = torch.from_numpy(one).reshape(planes.shape)
    expected = image_q_by_hand(network, planes)
    assert expected.std() > 1e-3
    torch.testing.assert_close(network(frames), expected, rtol=1e-4, atol=1e-5)


def test_image_network_gives_each_row_its_own_values():
    network = make_network((12, 10)).eval()
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (4, 2, 12, 10), np.uint8))
    alone = torch.cat([network(frames[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(network(frames), alone, rtol=1e-4, atol=1e-5)


def test_standardized_frames_are_invariant_to_brightness_and_contrast():
    frames = torch.from_numpy(np.random.default_rng(0).integers(0, 80, (4, 2, 12, 10), np.uint8))
    brighter = 3 * frames + 10
    moved = {}
    for standardize in (False, True):
        network = make_network((12, 10), standardize)
        moved[standardize] = (network(frames) - network(brighter)).abs().max().item()
    assert moved[True] < 1e-4 < 3e-3 < moved[False]
    blank = torch.full((1, 2, 12, 10), 87, dtype=torch.uint8)
    torch.testing.assert_close(network(blank), network(0 * blank))


def test_ram_bytes_are_scaled_and_float_vectors_are_not():
    torch.manual_seed(0)
    for dtype, scale in (("uint8", 1 / 255), ("float32", 1.0)):
        network = DuelingQNetwork(env_spec((6,), dtype), [], (), (5,))
        x = torch.arange(12.0).reshape(2, 6) * 20
        expected = q_by_hand(network.state_dict(), x * scale)
        given = x.to(torch.uint8) if dtype == "uint8" else x
        torch.testing.assert_close(network(given), expected, rtol=1e-4, atol=1e-5)


def test_convolutions_that_do_not_fit_are_refused():
    with pytest.raises(ConfigError, match=r"algorithm\.conv.*too small"):
        make_network((4, 4))


def test_update_learns_from_uint8_frames():
    learner = make_learner(
        env_spec((6, 6), stack=2, actions=4), optimizer="adam", learning_rate=0.01
    )
    rng = np.random.default_rng(0)
    images = {
        name: rng.integers(0, 256, (8, 2, 6, 6)).astype(np.uint8)
        for name in ("observation", "next_observation")
    }
    batch = make_batch(0) | images
    losses = [float(learn(learner, batch)[1]["loss"]) for _ in range(30)]
    assert losses[-1] < losses[0] / 2


def test_initial_priorities_are_the_actors_absolute_td_errors():
    columns = {
        "n_step_return": np.array([1.0, -2.0], dtype=np.float32),
        "discount": np.array([0.5, 0.0], dtype=np.float32),
    }
    first = {"q_value": np.array([4.0, 3.0])}
    bootstrap = {"max_q": np.array([2.0, 100.0])}
    # |1 + 0.5 * 2 - 4| and |-2 + 0 - 3|
    algorithm = ApexDQN(ApexDQN.Config(), SPEC)
    assert algorithm.initial_priorities(columns, first, bootstrap).tolist() == [2.0, 5.0]


def test_policy_gives_the_value_of_the_action_that_it_took():
    policy = ApexDQN(ApexDQN.Config(stream_hidden=(5,)), SPEC).policy()
    observations = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    explore = EpsilonGreedy(np.full(40, 0.7), 4, [(env,) for env in range(40)])
    zeros = np.zeros(40)
    inputs = Inputs(observations, np.zeros((40, 0), np.float32), zeros.astype(np.int64), zeros)
    actions, state, extras = policy.act(inputs, explore)
    q = q_by_hand(policy.network.state_dict(), torch.from_numpy(observations)).numpy()
    greedy = policy.act(inputs, None).actions
    assert state.shape == (40, 0) and (greedy == q.argmax(1)).all() and (actions != greedy).any()
    np.testing.assert_allclose(extras["q_value"], q[np.arange(40), actions], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(extras["max_q"], q.max(1), rtol=1e-5, atol=1e-6)


def test_policy_plays_loaded_parameters():
    agent = ApexDQN(ApexDQN.Config(stream_hidden=(5,)), SPEC)
    policy, other = agent.policy(), agent.network()
    policy.load(other.state_dict())
    assert_same(snapshot(policy.network), snapshot(other))


def test_schema_follows_observations_and_n_step():
    image = ApexDQN(ApexDQN.Config(n_step=3), env_spec((84, 84), stack=4)).schema()
    assert image.frames.shape == (84, 84) and image.frames.max_frames == 7
    vector = ApexDQN(ApexDQN.Config(n_step=3), SPEC).schema()
    columns = {c.name: (c.dtype, c.shape) for c in vector.columns}
    assert vector.frames is None
    assert columns == {
        "action": ("int32", ()), "n_step_return": ("float32", ()), "discount": ("float32", ()),
        "learner_step": ("int64", ()), "observation": ("float32", (3,)),
        "next_observation": ("float32", (3,)),
    }  # fmt: skip


def test_schema_of_another_n_step_is_refused():
    one, three = (ApexDQN(ApexDQN.Config(n_step=n), env_spec((8, 8), stack=4)) for n in (1, 3))
    check_schema(one, one.schema())
    assert one.schema().hash != three.schema().hash
    with pytest.raises(RunError, match="n_step"):
        check_schema(one, three.schema())


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"name": "apex_dqm"}, "unknown algorithm 'apex_dqm'; expected one of apex_dqn"),
        ({"name": "apex_dqn", "n_stepp": 3}, "algorithm.n_stepp: unknown key; did you mean"),
        ({"name": "apex_dqn", "n_step": 0}, "algorithm.n_step"),
        ({"name": "apex_dqn", "discount": "0.9"}, "algorithm.discount"),
        ({"name": "apex_dqn", "optimizer": "sgd"}, "algorithm.optimizer"),
    ],
)
def test_bad_algorithm_section_is_refused_by_path(section, message):
    with pytest.raises(ConfigError) as error:
        make_algorithm(section, SPEC)
    assert message in str(error.value)


def test_defaults_are_the_papers():
    config = ApexDQN.Config()
    assert (config.n_step, config.discount, config.optimizer) == (3, 0.99, "rmsprop")
    assert (config.learning_rate, config.optimizer_epsilon) == (0.00025 / 4, 1.5e-7)
    assert (config.rmsprop_decay, config.max_gradient_norm) == (0.95, 40.0)
    assert (config.importance_sampling_exponent, config.target_update_period) == (0.4, 2500)
    assert (config.epsilon, config.epsilon_alpha) == (0.4, 7.0)
    assert config.loss == "squared" and ReplayConfig().priority_exponent == 0.6
    assert config.conv == ((32, 8, 4), (64, 4, 2), (64, 3, 1))
    assert (config.hidden, config.stream_hidden) == ((), (512,))


def test_default_optimizer_is_centered_rmsprop_with_the_papers_values():
    (optimization,) = ApexDQN(ApexDQN.Config(), SPEC).learner(CPU).optimizations().values()
    assert type(optimization.optimizer) is RMSProp and optimization.rate_at(0) == 6.25e-5
    group = optimization.optimizer.param_groups[0]
    assert (group["decay"], group["epsilon"]) == (0.95, 1.5e-7)


@pytest.mark.parametrize("action", [-1, 3, 2**31 - 1])
def test_item_with_an_invalid_action_is_reported_and_not_learned_from(action):
    algorithm = make_algorithm({"name": "apex_dqn"}, env_spec((3,), "float32", actions=3))
    columns = {
        column.name: np.zeros((4, *column.shape), column.dtype)
        for column in algorithm.schema().columns
    }
    columns["action"][:] = [0, 2, action, 1]
    items = Items(np.arange(10, 14), np.full(4, 0.25), columns)
    with pytest.raises(CorruptItemsError, match="actions from 0 to 2") as error:
        algorithm.collate(items)
    assert error.value.item_ids == [12]


def test_item_with_too_few_frames_is_reported_and_not_learned_from():
    algorithm = make_algorithm({"name": "apex_dqn"}, env_spec((6, 6), stack=4))
    schema = algorithm.schema()
    columns = {c.name: np.zeros((2, *c.shape), c.dtype) for c in schema.columns}
    frames = np.zeros((2, schema.frames.max_frames, 6, 6), np.uint8)
    counts = np.array([5, 4], dtype=np.int32)
    with pytest.raises(CorruptItemsError, match="more than 4 frames") as error:
        algorithm.collate(Items(np.array([7, 8]), np.ones(2), columns, frames, counts))
    assert error.value.item_ids == [8]
