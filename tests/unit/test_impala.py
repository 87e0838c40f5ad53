"""IMPALA: one update against the loss written out step by step; network, settings."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from apex.acting.decisions import Inputs
from apex.acting.exploration import Sampled
from apex.algos.impala import Impala
from apex.algos.loss_learner import LossLearner
from apex.algos.registry import make_algorithm
from apex.errors import ConfigError
from apex.networks.actor_critic import ActorCriticNetwork
from apex.networks.sequence import Layers
from apex.networks.torsos import ImageTorso
from apex.ops.rmsprop import RMSProp
from tests.support.batches import batch_of, learn
from tests.support.builders import env_spec
from tests.support.vtrace_oracle import vtrace_sums

torch.set_num_threads(1)
SPEC = env_spec((3,), "float32", actions=4)
CPU = torch.device("cpu")
SMALL = {"unroll_length": 6, "discount": 0.9, "hidden": (8,)}


def make_learner(seed: int = 0, **settings: object) -> LossLearner:
    torch.manual_seed(seed)
    learner = Impala(Impala.Config(**{**SMALL, **settings}), SPEC).learner(CPU)
    assert isinstance(learner, LossLearner)
    return learner


def make_batch(seed: int, size: int = 3, lstm: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shape = (size, 7)
    is_last = rng.random(shape) < 0.1
    batch = {
        "observation": rng.normal(size=(*shape, 3)).astype(np.float32),
        "action": rng.integers(0, 4, shape).astype(np.int32),
        "reward": rng.normal(size=shape).astype(np.float32),
        "discount": np.where(is_last | (rng.random(shape) < 0.1), 0, 0.9).astype(np.float32),
        "is_first": np.concatenate([np.zeros((size, 1), bool), is_last[:, :-1]], axis=1),
        "is_last": is_last,
        "last_action": rng.integers(0, 4, shape).astype(np.int32),
        "last_reward": rng.normal(size=shape).astype(np.float32),
        "behaviour_logits": rng.normal(size=(*shape, 4)).astype(np.float32),
        "probability": np.ones(size, np.float32),
    }
    if lstm:
        batch["core_state"] = rng.normal(size=(size, 2 * lstm)).astype(np.float32)
    return batch


def softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


@pytest.mark.parametrize("lstm", [0, 5])
def test_losses_are_the_papers(lstm):
    learner, batch = make_learner(lstm=lstm), make_batch(1, lstm=lstm)
    assert batch["is_last"][:, :-1].any()
    from apex.algos.sequence_batches import learning_inputs

    with torch.no_grad():
        inputs = learning_inputs(batch_of(batch))
        logits, values, _ = learner.network(inputs)
    logits, values = logits.double().numpy(), values.double().numpy()
    policy = baseline = bonus = 0.0
    count, ratios, errors = 0, [], []
    for b in range(3):
        pi, mu = softmax(logits[b]), softmax(batch["behaviour_logits"][b].astype(float))
        chosen = batch["action"][b]
        rho = [pi[t, chosen[t]] / mu[t, chosen[t]] for t in range(6)]
        targets, advantages = vtrace_sums(
            rho, batch["reward"][b][:6], batch["discount"][b][:6], values[b],
            batch["is_last"][b][:6], 1.0, 1.0,
        )  # fmt: skip
        error = np.zeros(6)
        for t in range(6):
            if batch["is_last"][b, t]:
                continue
            policy -= advantages[t] * np.log(pi[t, chosen[t]])
            baseline += 0.5 * (targets[t] - values[b, t]) ** 2
            bonus -= (pi[t] * np.log(pi[t])).sum()
            error[t] = abs(targets[t] - values[b, t])
            count, ratios = count + 1, [*ratios, rho[t]]
        errors.append(error.mean())
    priorities, metrics = learn(learner, batch)
    found = {name: float(metrics[name]) for name in
             ("policy_loss", "baseline_loss", "entropy", "loss", "rho_mean")}  # fmt: skip
    assert found == pytest.approx(
        {
            "policy_loss": policy / count,
            "baseline_loss": baseline / count,
            "entropy": bonus / count,
            "loss": (policy + 0.5 * baseline - 0.01 * bonus) / count,
            "rho_mean": np.mean(ratios),
        },
        rel=1e-4,
    )
    np.testing.assert_allclose(priorities, errors, rtol=1e-4)


def test_final_observation_of_a_truncated_episode_gives_no_gradient():
    """The action and behaviour logits recorded there change no parameter."""
    first, second = make_learner(), make_learner()
    batch = make_batch(2)
    batch["is_last"][:] = False
    batch["is_last"][:, 3] = True
    other = {name: array.copy() for name, array in batch.items()}
    other["action"][:, 3] = (other["action"][:, 3] + 1) % 4
    other["reward"][:, 3] = 100.0
    other["behaviour_logits"][:, 3] = 3.0
    learn(first, batch)
    learn(second, other)
    for a, b in zip(first.network.parameters(), second.network.parameters()):
        assert torch.equal(a, b)


def test_advantage_raises_the_actions_probability_and_a_disadvantage_lowers_it():
    for reward, direction in ((1.0, 1), (-1.0, -1)):
        learner = make_learner(entropy_cost=0.0, baseline_cost=0.0, optimizer="adam")
        batch = make_batch(3)
        batch["reward"][:] = reward
        batch["discount"][:] = 0.0
        batch["is_last"][:] = False
        with torch.no_grad():
            learner.network.value.weight.zero_()
            learner.network.value.bias.zero_()

        def mean_log_probability(learner=learner, batch=batch) -> float:
            from apex.algos.sequence_batches import learning_inputs

            inputs = learning_inputs(batch_of(batch))
            with torch.no_grad():
                logits = learner.network(inputs)[0][:, :-1]
            log_pi = torch.log_softmax(logits, -1)
            actions = torch.from_numpy(batch["action"][:, :-1]).long().unsqueeze(-1)
            return float(log_pi.gather(-1, actions).mean())

        before = mean_log_probability()
        learn(learner, batch)
        assert direction * (mean_log_probability() - before) > 0


def test_resumed_learner_continues_as_if_it_had_not_stopped():
    first, second = make_learner(seed=1), make_learner(seed=2)
    learn(first, make_batch(0))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert learn(first, make_batch(1))[0].tolist() == learn(second, make_batch(1))[0].tolist()
    for a, b in zip(first.network.parameters(), second.network.parameters()):
        assert torch.equal(a, b)


def test_defaults_are_the_papers():
    config = Impala.Config()
    assert (config.unroll_length, config.rho_clip, config.c_clip) == (20, 1.0, 1.0)
    assert (config.baseline_cost, config.entropy_cost) == (0.5, 0.01)
    assert (config.learning_rate, config.final_learning_rate_fraction) == (0.0006, 0.0)
    (optimization,) = Impala(config, SPEC).learner(CPU).optimizations().values()
    optimizer = optimization.optimizer
    assert type(optimizer) is RMSProp
    (group,) = optimizer.param_groups
    assert (group["decay"], group["epsilon"], group["centered"]) == (0.99, 0.01, False)


def test_policy_returns_the_logits_that_it_sampled_from():
    policy = Impala(Impala.Config(**SMALL), SPEC).policy()
    rng = np.random.default_rng(0)
    zeros = np.zeros(500)
    inputs = Inputs(
        np.repeat(rng.normal(size=(1, 3)), 500, axis=0).astype(np.float32),
        np.zeros((500, 0), np.float32), zeros.astype(np.int64), zeros.astype(np.float32),
    )  # fmt: skip
    decision = policy.act(inputs, Sampled([(env,) for env in range(500)]))
    logits = decision.extras["behaviour_logits"]
    assert (policy.act(inputs, None).actions == logits.argmax(1)).all()
    shares = np.bincount(decision.actions, minlength=4) / 500
    np.testing.assert_allclose(shares, softmax(logits[0]), atol=0.08)


def test_deep_network_has_fifteen_convolutions_and_halves_the_image_three_times():
    torso = ImageTorso(env_spec((84, 84), stack=4), (), residual=(16, 32, 32))
    convolutions = [m for m in torso.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convolutions) == 15
    assert torso.out_features == 32 * 11 * 11
    frames = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    assert torso(frames).shape == (2, 32 * 11 * 11)
    odd = ImageTorso(env_spec((42, 45), stack=4), (), residual=(4, 4))
    assert odd(torch.zeros(1, 4, 42, 45, dtype=torch.uint8)).shape == (1, odd.out_features)


def test_feedforward_network_gives_each_step_the_same_alone_and_in_a_sequence():
    torch.manual_seed(0)
    network = ActorCriticNetwork(SPEC, Layers((), (), (8,), 0))
    from apex.networks.recurrent_cores import SequenceInputs

    inputs = SequenceInputs(
        torch.randn(2, 5, 3), torch.zeros(2, 5, dtype=torch.int64), torch.zeros(2, 5),
        torch.zeros(2, 5, dtype=torch.bool), torch.zeros(2, 0),
    )  # fmt: skip
    logits, values, state = network(inputs)
    assert logits.shape == (2, 5, 4) and values.shape == (2, 5) and state.shape == (2, 0)
    alone, value, _ = network(inputs.part(3, 4, state))
    torch.testing.assert_close(alone[:, 0], logits[:, 3])
    torch.testing.assert_close(value[:, 0], values[:, 3])


def test_c_clip_above_rho_clip_is_refused():
    with pytest.raises(ConfigError, match=r"c_clip \(2.0\) must be at most rho_clip \(1.0\)"):
        make_algorithm({"name": "impala", "c_clip": 2.0}, env_spec((3,), "float32"))
