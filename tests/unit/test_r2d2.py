"""R2D2: rescaling, targets and priorities against literal numbers and the papers' sums; one
update against a computation step by step."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from apex.acting.decisions import Inputs
from apex.acting.exploration import EpsilonGreedy
from apex.algos.loss_learner import LossLearner
from apex.algos.r2d2 import R2D2
from apex.algos.registry import make_algorithm
from apex.algos.sequence_batches import learning_inputs
from apex.errors import ConfigError
from apex.networks.recurrent_cores import LSTMCore, SequenceInputs
from apex.ops.double_q_learning import n_step_targets, sequence_priorities
from apex.ops.value_rescale import rescale, unrescale
from tests.support.batches import batch_of, learn
from tests.support.builders import env_spec

torch.set_num_threads(1)
SPEC = env_spec((3,), "float32", actions=4)
CPU = torch.device("cpu")
SMALL = {"burn_in": 3, "unroll_length": 5, "overlap": 2, "n_step": 2, "discount": 0.9,
         "hidden": (6,), "lstm": 4, "stream_hidden": (5,)}  # fmt: skip
LENGTH = 3 + 5 + 2


def of(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_rescale_of_literal_numbers():
    # h(3) = sqrt(4) - 1 + 0.003, h(-8) = -(sqrt(9) - 1) - 0.008
    assert rescale(of([3.0, -8.0, 0.0])).tolist() == pytest.approx([1.003, -2.008, 0.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_unrescale_is_the_inverse_over_eight_orders_of_magnitude(dtype):
    magnitudes = torch.logspace(-4, 4, 200, dtype=dtype)
    values = torch.cat([-magnitudes.flip(0), torch.zeros(1, dtype=dtype), magnitudes])
    precision = 1e-12 if dtype is torch.float64 else 2e-5
    torch.testing.assert_close(unrescale(rescale(values)), values, rtol=precision, atol=1e-10)
    torch.testing.assert_close(rescale(unrescale(values)), values, rtol=precision, atol=1e-10)


def test_unrescale_is_the_papers_formula():
    x, e = of([0.5, -2.0, 30.0]), 1e-3
    inner = (torch.sqrt(1 + 4 * e * (x.abs() + 1 + e)) - 1) / (2 * e)
    torch.testing.assert_close(unrescale(x), x.sign() * (inner**2 - 1))


def targets_by_sums(rewards, discounts, is_last, values, n):
    """sum_{k<n} (prod gamma) r_{t+k} + (prod gamma) V(x_{t+n}); a final observation ends it."""
    found = []
    for t in range(len(rewards) - n):
        total, product = 0.0, 1.0
        for k in range(n):
            if is_last[t + k]:
                break
            total += product * rewards[t + k]
            product *= discounts[t + k]
        else:
            k = n
        found.append(total + product * values[t + k])
    return found


@pytest.mark.parametrize("n", [1, 3, 5])
def test_n_step_targets_are_the_sums(n):
    rng = np.random.default_rng(n)
    shape = (6, 14)
    rewards, values = rng.normal(size=shape), rng.normal(size=shape)
    discounts = np.where(rng.random(shape) < 0.15, 0.0, 0.9)
    is_last = rng.random(shape) < 0.15
    found = n_step_targets(of(rewards), of(discounts), torch.tensor(is_last), of(values), n)
    assert found.shape == (6, 14 - n)
    for b in range(6):
        expected = targets_by_sums(rewards[b], discounts[b], is_last[b], values[b], n)
        np.testing.assert_allclose(found[b], expected, rtol=1e-12)


def test_n_step_targets_of_literal_numbers():
    rewards, values = of([[1.0, 2.0, 4.0, 8.0]]), of([[10.0, 20.0, 40.0, 80.0]])
    gamma, nothing = of([[0.5] * 4]), torch.zeros(1, 4, dtype=torch.bool)
    assert n_step_targets(rewards, gamma, nothing, values, 2).tolist() == [[12.0, 24.0]]
    terminated = of([[0.5, 0.0, 0.5, 0.5]])
    assert n_step_targets(rewards, terminated, nothing, values, 2).tolist() == [[2.0, 2.0]]
    truncated = torch.tensor([[False, True, False, False]])
    assert n_step_targets(rewards, gamma, truncated, values, 2).tolist() == [[11.0, 20.0]]


def test_sequence_priorities_of_literal_numbers():
    td_errors = of([[1.0, -3.0, 2.0], [4.0, 9.0, 9.0], [5.0, 5.0, 5.0]])
    learned = torch.tensor([[True] * 3, [True, False, False], [False] * 3])
    # 0.9 * 3 + 0.1 * 2; the second counts its first step alone; the third has none
    assert sequence_priorities(td_errors, learned, 0.9).tolist() == pytest.approx([2.9, 4.0, 0.0])


def make_learner(seed: int = 0, **settings: object) -> LossLearner:
    torch.manual_seed(seed)
    learner = R2D2(R2D2.Config(**{**SMALL, **settings}), SPEC).learner(CPU)
    assert isinstance(learner, LossLearner)
    with torch.no_grad():  # make the target network differ from the online network
        for parameter in learner.target.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return learner


def make_batch(seed: int, size: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (size, LENGTH)
    is_last = rng.random(shape) < 0.08
    return {
        "observation": rng.normal(size=(*shape, 3)).astype(np.float32),
        "action": rng.integers(0, 4, shape).astype(np.int32),
        "reward": (5 * rng.normal(size=shape)).astype(np.float32),
        "discount": np.where(is_last | (rng.random(shape) < 0.1), 0, 0.9).astype(np.float32),
        "is_first": np.concatenate([np.zeros((size, 1), bool), is_last[:, :-1]], axis=1),
        "is_last": is_last,
        "last_action": rng.integers(0, 4, shape).astype(np.int32),
        "last_reward": rng.normal(size=shape).astype(np.float32),
        "core_state": rng.normal(size=(size, 8)).astype(np.float32),
        "probability": rng.uniform(0.001, 0.1, size).astype(np.float32),
    }


def step_by_step(network, batch: dict[str, np.ndarray], row: int) -> torch.Tensor:
    """Q-values `[L, A]` of one sequence, one call of the network for each of its steps."""
    state = torch.from_numpy(batch["core_state"][row : row + 1])
    values = []
    for t in range(LENGTH):

        def at(name: str, t: int = t) -> torch.Tensor:
            return torch.from_numpy(batch[name][row : row + 1, t : t + 1])

        if batch["is_first"][row, t]:
            state = torch.zeros_like(state)
        q, state = network(
            SequenceInputs(
                at("observation"), at("last_action").long(), at("last_reward"),
                torch.zeros(1, 1, dtype=torch.bool), state,
            )
        )  # fmt: skip
        values.append(q[0, 0])
    return torch.stack(values)


def test_update_is_the_papers_step_by_step():
    learner, batch = make_learner(), make_batch(1)
    assert batch["is_last"].any() and batch["is_first"].any()
    with torch.no_grad():
        online = [step_by_step(learner.network, batch, row).double() for row in range(4)]
        target = [step_by_step(learner.target, batch, row).double() for row in range(4)]
    expected = []
    for row in range(4):
        best = online[row].argmax(dim=1)
        values = unrescale(target[row].gather(1, best[:, None]).squeeze(1))
        sums = targets_by_sums(
            batch["reward"][row].astype(float), batch["discount"][row].astype(float),
            batch["is_last"][row], values.numpy(), 2,
        )  # fmt: skip
        chosen = online[row][np.arange(LENGTH), batch["action"][row].astype(int)]
        learned = [t for t in range(3, 8) if not batch["is_last"][row, t]]
        deltas = [abs(rescale(of(sums[t])).item() - chosen[t].item()) for t in learned]
        expected.append((deltas, 0.9 * max(deltas) + 0.1 * sum(deltas) / len(deltas)))
    priorities, metrics = learn(learner, batch)
    np.testing.assert_allclose(priorities, [priority for _, priority in expected], rtol=1e-4)
    weights = (batch["probability"].astype(float) / batch["probability"].min()) ** -0.6
    losses = [sum(0.5 * delta**2 for delta in deltas) for deltas, _ in expected]
    assert float(metrics["loss"]) * 5 == pytest.approx(np.mean(weights * losses), rel=1e-4)


def test_burn_in_gives_the_state_of_a_full_unroll_while_parameters_stay():
    """The last steps' Q-values are those of the whole sequence in one call."""
    learner, batch = make_learner(), batch_of(make_batch(2))
    assert batch.episode_edges
    with torch.no_grad():
        whole, _ = learner.network(learning_inputs(batch))
        after_burn_in = R2D2(R2D2.Config(**SMALL), SPEC).q_values(learner.network, batch)
    torch.testing.assert_close(after_burn_in, whole[:, 3:])


class Watched(R2D2):
    """Keeps the batches that `td_error` receives."""

    def td_error(self, batch, q, target_q):
        self.seen = batch
        return super().td_error(batch, q, target_q)


def test_td_error_receives_every_field_without_the_burn_in_steps():
    algorithm = Watched(R2D2.Config(**SMALL), SPEC)
    is_first = np.zeros((4, LENGTH), bool)
    is_first[0, 1] = is_first[1, 3] = is_first[2, 7] = True
    mask = torch.arange(4 * LENGTH * 4).reshape(4, LENGTH, 4) % 3 > 0
    whole = batch_of({**make_batch(6), "is_first": is_first, "value": np.ones((4, LENGTH))})
    whole = whole._replace(action_mask=mask)
    assert whole.episode_edges == (1, 3, 7)
    learn(algorithm.learner(CPU), whole)
    seen = algorithm.seen
    assert seen.episode_edges == (0, 4)
    for name in ("observation", "action", "reward", "discount", "is_first", "is_last",
                 "last_action", "last_reward", "action_mask"):  # fmt: skip
        assert torch.equal(getattr(seen, name), getattr(whole, name)[:, 3:])
    assert seen.extras["value"].shape == (4, LENGTH - 3)
    assert torch.equal(seen.core_state, whole.core_state)
    assert torch.equal(seen.probability, whole.probability)


def test_burn_in_passes_no_gradient():
    learner, arrays = make_learner(), make_batch(3)
    observations = torch.from_numpy(arrays["observation"]).requires_grad_()
    batch = batch_of({**arrays, "observation": observations})
    batch = batch._replace(is_first=torch.zeros(4, LENGTH, dtype=torch.bool), episode_edges=())
    R2D2(R2D2.Config(**SMALL), SPEC).q_values(learner.network, batch).sum().backward()
    assert not observations.grad[:, :3].any() and observations.grad[:, 3:].any()


def test_core_state_is_reset_at_episode_starts_only():
    torch.manual_seed(0)
    core = LSTMCore(2, env_spec((2,), "float32"), 4)
    features, is_first = torch.randn(2, 6, 2), torch.zeros(2, 6, dtype=torch.bool)
    is_first[0, 3] = is_first[1, 5] = True
    inputs = SequenceInputs(
        features, torch.randint(3, (2, 6)), torch.randn(2, 6), is_first, torch.randn(2, 8), (3, 5)
    )
    together, state = core(features, inputs)
    for row in range(2):
        own, outputs = inputs.core_state[row : row + 1], []
        for t in range(6):
            one = inputs.part(t, t + 1, own)
            one = SequenceInputs(*(part[row : row + 1] for part in one[:4]), own, (0,))
            output, own = core(features[row : row + 1, t : t + 1], one)
            outputs.append(output)
        torch.testing.assert_close(together[row], torch.cat(outputs, dim=1)[0])
        torch.testing.assert_close(state[row], own[0])


def test_initial_priorities_are_those_of_the_learner_when_its_networks_are_the_actors():
    learner, batch = make_learner(), make_batch(4)
    learner.target.load_state_dict(learner.network.state_dict())
    with torch.no_grad():
        q = torch.stack([step_by_step(learner.network, batch, row) for row in range(4)]).numpy()
    chosen = np.take_along_axis(q, batch["action"][..., None].astype(int), axis=-1)[..., 0]
    columns = {name: batch[name] for name in ("action", "reward", "discount")}
    columns["is_last"] = batch["is_last"].astype(np.uint8)
    algorithm = R2D2(R2D2.Config(**SMALL), SPEC)
    initial = algorithm.initial_priorities(columns, {"q_value": chosen, "max_q": q.max(-1)})
    priorities, _ = learn(learner, batch)
    np.testing.assert_allclose(initial, priorities, rtol=1e-4)


def test_target_network_is_copied_each_period():
    learner, batch = make_learner(target_update_period=3), make_batch(5)
    for step in range(1, 7):
        learn(learner, batch)
        same = all(
            torch.equal(a, b)
            for a, b in zip(learner.network.parameters(), learner.target.parameters())
        )
        assert same == (step % 3 == 0)


def test_resumed_learner_continues_as_if_it_had_not_stopped():
    first, second = make_learner(seed=1), make_learner(seed=2)
    learn(first, make_batch(0))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert learn(first, make_batch(1))[0].tolist() == learn(second, make_batch(1))[0].tolist()
    for a, b in zip(first.network.parameters(), second.network.parameters()):
        assert torch.equal(a, b)


def test_policy_keeps_its_core_state_and_returns_values_and_the_state_before_acting():
    policy = R2D2(R2D2.Config(**SMALL), SPEC).policy()
    assert policy.core_size == 8
    rng = np.random.default_rng(0)
    inputs = Inputs(
        rng.normal(size=(6, 3)).astype(np.float32), rng.normal(size=(6, 8)).astype(np.float32),
        rng.integers(0, 4, 6), rng.normal(size=6).astype(np.float32),
    )  # fmt: skip
    explore = EpsilonGreedy(np.full(6, 0.8), 4, [(env,) for env in range(6)])
    decision = policy.act(inputs, explore)
    forgetful = policy.act(inputs._replace(core_state=np.zeros((6, 8), np.float32)), explore)
    assert decision.core_state.shape == (6, 8)
    assert not np.allclose(decision.extras["max_q"], forgetful.extras["max_q"])
    assert (decision.extras["core_state"] == inputs.core_state).all()
    assert (decision.extras["q_value"] <= decision.extras["max_q"]).all()


def test_overlap_as_long_as_the_unroll_is_refused():
    with pytest.raises(ConfigError, match=r"overlap \(80\) must be less than unroll_length"):
        make_algorithm({"name": "r2d2", "overlap": 80}, SPEC)


def test_defaults_are_the_papers():
    config = R2D2.Config()
    assert (config.burn_in, config.unroll_length, config.overlap, config.n_step) == (40, 80, 40, 5)
    assert (config.discount, config.priority_eta) == (0.997, 0.9)
    assert (config.learning_rate, config.optimizer_epsilon, config.lstm) == (1e-4, 1e-3, 512)
    assert (config.importance_sampling_exponent, config.target_update_period) == (0.6, 2500)
    layout = R2D2(config, SPEC).layout()
    assert (layout.length, layout.period) == (125, 40)


def test_lstm_that_resets_by_flags_equals_one_that_is_split_at_the_episodes() -> None:
    torch.manual_seed(1)
    core = LSTMCore(5, env_spec((5,), "float32"), 4)
    is_first = torch.rand(6, 11) < 0.2
    edges = tuple(is_first.any(dim=0).nonzero().flatten().tolist())
    features = torch.randn(6, 11, 5, requires_grad=True)
    state = torch.randn(6, 8)
    found = []
    for known in (edges, None):
        inputs = SequenceInputs(
            features, torch.randint(0, 3, (6, 11), generator=torch.Generator().manual_seed(2)),
            torch.ones(6, 11), is_first, state, known,
        )  # fmt: skip
        outputs, final = core(features, inputs)
        (gradient,) = torch.autograd.grad(outputs.square().sum() + final.sum(), features)
        found.append((outputs, final, gradient))
    assert len(edges) >= 3
    for split, stepped in zip(*found):
        assert torch.allclose(split, stepped, rtol=1e-5, atol=1e-6)
