"""Ape-X DPG: equations, network, exploration, learning."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from apex.acting.decisions import Inputs
from apex.acting.exploration import GaussianNoise, LadderPlace, noise_ladder
from apex.algos.apex_dpg import ApexDPG, DPGLearner
from apex.algos.registry import make_algorithm
from apex.data.chunks import Items
from apex.envs.spec import ActionBounds, EnvSpec
from apex.errors import ConfigError, CorruptItemsError
from apex.ops.deterministic_policy_gradient import deterministic_policy_gradient_loss, td_error
from tests.support.batches import learn
from tests.support.builders import env_spec

torch.set_num_threads(1)
CPU = torch.device("cpu")
BOUNDS = ActionBounds("float32", (2,), (-2.0, 0.0), (2.0, 10.0))
SPEC = EnvSpec("Test-v0", (3,), "float32", 0, 0, BOUNDS)
IMAGES = EnvSpec("Test-v0", (12, 10, 3), "uint8", 2, 0, BOUNDS)
SMALL = {"actor_hidden": (16,), "critic_hidden": (16, 16), "conv": ((4, 3, 2),)}


def make_learner(spec: EnvSpec = SPEC, **settings: object) -> DPGLearner:
    torch.manual_seed(0)
    learner = ApexDPG(ApexDPG.Config(**{**SMALL, **settings}), spec).learner(CPU)
    assert isinstance(learner, DPGLearner)
    return learner


def make_batch(spec: EnvSpec = SPEC, size: int = 8) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (size, *spec.policy_shape)
    if spec.frame_stack:
        pairs = torch.randint(0, 256, (2, *shape), generator=generator, dtype=torch.uint8)
    else:
        pairs = torch.randn((2, *shape), generator=generator)
    low, high = torch.tensor(BOUNDS.low), torch.tensor(BOUNDS.high)
    return {
        "observation": pairs[0],
        "next_observation": pairs[1],
        "action": low + torch.rand((size, 2), generator=generator) * (high - low),
        "n_step_return": torch.randn(size, generator=generator),
        "discount": torch.full((size,), 0.9),
        "probability": torch.full((size,), 0.1),
    }


def test_loss_pushes_actions_along_the_clipped_gradient_of_the_value():
    actions = torch.tensor([[0.5, -0.5], [0.0, 0.1]], requires_grad=True)
    loss = deterministic_policy_gradient_loss(actions, torch.tensor([[3.0, -0.25], [0, 9]]), 1.0)
    # Half the squared step, each step clipped to 1: (0.25 + 0.0625) / 2 and 0.81 / 2.
    assert loss.tolist() == pytest.approx([0.15625, 0.405])
    loss.sum().backward()
    assert torch.allclose(actions.grad, torch.tensor([[-0.5, 0.25], [0.0, -0.9]]))


def test_td_error_ends_at_a_termination_and_flows_into_the_first_value_alone():
    q_tm1 = torch.tensor([1.0, 2.0], requires_grad=True)
    q_t = torch.tensor([10.0, 10.0], requires_grad=True)
    errors = td_error(q_tm1, torch.tensor([0.5, 0.5]), torch.tensor([0.9, 0.0]), q_t)
    assert errors.tolist() == pytest.approx([8.5, -1.5])
    errors.sum().backward()
    assert q_tm1.grad.tolist() == [-1.0, -1.0] and q_t.grad is None


def test_actions_are_scaled_to_their_bounds_and_back():
    network = make_learner().network
    inner = torch.tensor([[-1.0, 1.0], [0.0, 0.5]])
    outer = network.to_environment(inner)
    assert outer.tolist() == [[-2.0, 10.0], [0.0, 7.5]]
    assert torch.allclose(network.from_environment(outer), inner)
    published = dict(network.state_dict())
    assert not {"low", "high"} & published.keys()


def test_noise_ladder_has_equal_factors():
    sigmas = noise_ladder(np.arange(3.0), 3, 0.4, 0.1)
    assert sigmas.tolist() == pytest.approx([0.4, 0.2, 0.1])
    assert noise_ladder(np.zeros(1), 1, 0.4, 0.1).tolist() == pytest.approx([0.2])
    assert noise_ladder(np.arange(2.0), 2, 0.3, 0.3).tolist() == pytest.approx([0.3, 0.3])


def test_noise_is_normal_in_half_ranges_and_kept_within_bounds():
    low, high = np.array([-2.0, 0.0]), np.array([2.0, 10.0])
    explore = GaussianNoise(np.array([0.1, 0.0]), low, high, [(1,), (2,)])
    greedy = np.array([[0.0, 5.0], [2.0, 0.0]], dtype=np.float32)
    drawn = np.stack([explore(greedy) for _ in range(4000)])
    assert drawn.dtype == np.float32 and greedy.tolist() == [[0.0, 5.0], [2.0, 0.0]]
    assert drawn[:, 0].std(axis=0) == pytest.approx([0.2, 0.5], rel=0.05)
    assert drawn[:, 0].mean(axis=0) == pytest.approx([0.0, 5.0], abs=0.03)
    assert (drawn[:, 1] == greedy[1]).all()
    wide = GaussianNoise(np.array([5.0]), low, high, [(3,)])
    far = np.stack([wide(greedy[:1])[0] for _ in range(200)])
    assert far.min(axis=0).tolist() == [-2.0, 0.0] and far.max(axis=0).tolist() == [2.0, 10.0]


def test_draws_of_an_environment_do_not_depend_on_its_neighbours():
    low, high = np.array([-1.0]), np.array([1.0])
    alone = GaussianNoise(np.array([0.2]), low, high, [(1, 2, 3)])(np.zeros((1, 1)))
    among = GaussianNoise(np.full(3, 0.2), low, high, [(1,), (1, 2, 3), (7,)])(np.zeros((3, 1)))
    assert alone[0] == among[1] and among[0] != among[1]


@pytest.mark.parametrize("spec", [SPEC, IMAGES], ids=["vectors", "images"])
def test_policy_acts_within_bounds_and_records_the_values_of_taken_and_greedy_actions(spec):
    algorithm = ApexDPG(ApexDPG.Config(**SMALL), spec)
    torch.manual_seed(3)
    policy = algorithm.policy()
    torch.nn.init.normal_(policy.network.critic.head[-1].weight)
    batch = make_batch(spec, size=6)
    inputs = Inputs(
        batch["observation"].numpy(), np.zeros((6, 0), np.float32), spec.no_actions(6),
        np.zeros(6, np.float32),
    )  # fmt: skip
    explore = algorithm.exploration(LadderPlace(np.arange(6.0), 6, [(env,) for env in range(6)]))
    greedy, noisy = policy.act(inputs, None), policy.act(inputs, explore)
    assert greedy.actions.dtype == np.float32 and greedy.actions.shape == (6, 2)
    assert not spec.bad_actions(noisy.actions).any() and (noisy.actions != greedy.actions).all()
    network = policy.network
    with torch.inference_mode():
        for name, actions in (("q_value", noisy.actions), ("max_q", greedy.actions)):
            inner = network.from_environment(torch.from_numpy(actions))
            values = network.critic(batch["observation"], inner)
            assert noisy.extras[name] == pytest.approx(values.numpy(), abs=1e-4)


@pytest.mark.parametrize("spec", [SPEC, IMAGES], ids=["vectors", "images"])
def test_priorities_are_the_absolute_td_errors_of_the_critic(spec):
    learner, batch = make_learner(spec), make_batch(spec)
    network, target = learner.network, learner.target
    with torch.no_grad():
        q = network.critic(batch["observation"], network.from_environment(batch["action"]))
        bootstrap = target.critic(
            batch["next_observation"], target.actor(batch["next_observation"])
        )
    expected = (batch["n_step_return"] + 0.9 * bootstrap - q).abs()
    priorities, metrics = learn(learner, batch)
    assert priorities == pytest.approx(expected.double().numpy(), rel=1e-5)
    assert metrics["td_error"] == pytest.approx(expected.mean().item(), rel=1e-5)


@pytest.mark.parametrize(
    ("still", "expected"), [("actor_learning_rate", "critic"), ("learning_rate", "actor")]
)
def test_each_loss_changes_its_own_network_alone(still, expected):
    learner = make_learner(**{still: 1e-30})
    before = {name: p.clone() for name, p in learner.network.state_dict().items()}
    for _ in range(3):
        learn(learner, make_batch())
    after = learner.network.state_dict()
    changed = {
        name.partition(".")[0]
        for name, parameter in before.items()
        if not parameter.allclose(after[name], rtol=0.0, atol=1e-20)
    }
    assert changed == {expected}


def test_target_is_copied_after_each_period_and_constant_in_between():
    learner, batch = make_learner(target_update_period=3), make_batch()
    first = {name: p.clone() for name, p in learner.target.state_dict().items()}
    for _ in range(2):
        learn(learner, batch)
    assert all(p.equal(first[name]) for name, p in learner.target.state_dict().items())
    learn(learner, batch)
    online = learner.network.state_dict()
    assert all(p.equal(online[name]) for name, p in learner.target.state_dict().items())


def test_learner_finds_the_best_action_of_a_known_value_function():
    """Reward -(a0 - 1)^2 - (a1 - 7)^2 / 10, episodes of one step: the actor must find (1, 7)."""
    learner = make_learner(
        actor_hidden=(32,), critic_hidden=(64, 64), learning_rate=3e-3, actor_learning_rate=1e-3
    )
    generator = torch.Generator().manual_seed(2)
    low, high = torch.tensor(BOUNDS.low), torch.tensor(BOUNDS.high)
    observation = torch.ones(64, 3)
    for _ in range(1500):
        action = low + torch.rand((64, 2), generator=generator) * (high - low)
        reward = -((action[:, 0] - 1.0) ** 2) - (action[:, 1] - 7.0) ** 2 / 10.0
        learn(learner, {
            "observation": observation, "next_observation": observation, "action": action,
            "n_step_return": reward, "discount": torch.zeros(64),
            "probability": torch.full((64,), 0.1),
        })  # fmt: skip
    network = learner.network
    found = network.to_environment(network.actor(observation[:1]))[0]
    assert found.tolist() == pytest.approx([1.0, 7.0], abs=0.5)


def test_resumed_learner_continues_as_the_original_would():
    first, batch = make_learner(target_update_period=2), make_batch()
    for _ in range(3):
        learn(first, batch)
    second = make_learner(target_update_period=2)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for learner in (first, second):
        learn(learner, batch)
    other = second.network.state_dict()
    assert all(p.equal(other[name]) for name, p in first.network.state_dict().items())


def test_item_with_an_action_outside_its_bounds_is_reported():
    algorithm = ApexDPG(ApexDPG.Config(**SMALL), SPEC)
    columns = {c.name: np.zeros((3, *c.shape), c.dtype) for c in algorithm.schema().columns}
    columns["action"][1] = [0.0, 10.5]
    items = Items(np.array([4, 5, 6]), np.full(3, 0.3), columns)
    with pytest.raises(CorruptItemsError, match="continuous actions") as error:
        algorithm.collate(items)
    assert error.value.item_ids == [5]


def test_action_space_mismatch_names_the_algorithms_that_fit():
    with pytest.raises(
        ConfigError, match=r"apex_dpg supports continuous actions.*apex_dqn, impala"
    ):
        make_algorithm({"name": "apex_dpg"}, env_spec((3,), "float32"))
    with pytest.raises(ConfigError, match=r"apex_dqn supports discrete actions.*by: apex_dpg"):
        make_algorithm({"name": "apex_dqn"}, SPEC)
    several = EnvSpec("T", (3,), "float32", 0, 0, ActionBounds("int64", (1,), (0,), (3,)))
    with pytest.raises(ConfigError, match=r"multi-discrete actions.*supported by: impala"):
        make_algorithm({"name": "apex_dpg"}, several)
