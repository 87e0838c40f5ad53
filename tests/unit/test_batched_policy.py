"""Batches of the inference server: padding, recordings, two in flight. A CPU replays recordings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.exploration import LadderPlace
from apex.acting.normalization import Normalization
from apex.algos.base import Algorithm
from apex.algos.normalization import normalized
from apex.algos.normalizer import VARIANCE
from apex.api import R2D2, ApexDPG, ApexDQN, Impala, InputTensors, Policy, QAlgorithm, QPolicy
from apex.daemons.inference.batched_policy import (
    ImmediatePolicy,
    StreamedPolicy,
    batch_sizes,
    batched,
)
from apex.envs.spec import ActionBounds, EnvSpec
from apex.networks import parameters
from tests.support.cpu_stream import CpuStream

torch.set_num_threads(1)
VECTORS = EnvSpec("Test-v0", (3,), "float32", 0, 4)
IMAGES = EnvSpec("Test-v0", (12, 12), "uint8", 2, 4)
CONTINUOUS = EnvSpec(
    "Test-v0", (3,), "float32", 0, 0, ActionBounds("float32", (2,), (-2.0, 0.0), (2.0, 10.0))
)
CONV = {"conv": ((4, 3, 2),)}
SEQUENCES = {"burn_in": 3, "unroll_length": 5, "overlap": 2, "n_step": 2}
CASES = {
    "apex_dqn": (ApexDQN, VECTORS, {}),
    "apex_dqn, images": (ApexDQN, IMAGES, CONV),
    "r2d2, lstm": (R2D2, VECTORS, {**SEQUENCES, "lstm": 4}),
    "r2d2, images": (R2D2, IMAGES, {**SEQUENCES, **CONV}),
    "impala": (Impala, VECTORS, {"unroll_length": 9}),
    "impala, lstm": (Impala, IMAGES, {"unroll_length": 9, "lstm": 4, **CONV}),
    "r2d2, normalized": (
        normalized(R2D2, Normalization({"observation": (3,)}, rewards=True, discount=0.99)),
        VECTORS,
        {**SEQUENCES, "lstm": 4},
    ),
}
AGENT = 2
"""Environments of an agent."""


def made(kind: type[Algorithm], spec: EnvSpec, settings: Mapping[str, Any]) -> Algorithm:
    torch.manual_seed(0)
    return kind(kind.Config(**settings), spec)


def inputs_of(policy: Policy, spec: EnvSpec, agents: int, seed: int = 0) -> list[Inputs]:
    """Random inputs of several agents."""
    rng = np.random.default_rng(seed)

    def observations() -> np.ndarray:
        shape = (AGENT, *spec.policy_shape)
        if spec.frame_stack:
            return rng.integers(0, 256, shape, dtype=np.uint8)
        return rng.normal(size=shape).astype(np.float32)

    return [
        Inputs(
            observations(),
            rng.normal(size=(AGENT, policy.core_size)).astype(np.float32),
            rng.integers(0, 4, AGENT),
            rng.normal(size=AGENT).astype(np.float32),
        )
        for _ in range(agents)
    ]


def explored(algorithm: Algorithm, agents: int) -> Exploration:
    """Exploration with random numbers of its own, the same at each call."""
    envs = agents * AGENT
    return algorithm.exploration(
        LadderPlace(np.arange(float(envs)), envs, [(e,) for e in range(envs)])
    )


def assert_same(found: Decision, expected: Decision) -> None:
    """Decisions are equal, up to how a larger batch rounds."""
    assert found.actions.tolist() == expected.actions.tolist()
    np.testing.assert_allclose(found.core_state, expected.core_state, rtol=1e-5, atol=1e-6)
    assert found.extras.keys() == expected.extras.keys()
    for name, values in expected.extras.items():
        assert found.extras[name].dtype == values.dtype
        np.testing.assert_allclose(found.extras[name], values, rtol=1e-5, atol=1e-6, err_msg=name)


def test_batch_sizes_are_powers_of_two_and_the_largest_batch() -> None:
    assert batch_sizes(1) == [1]
    assert batch_sizes(8) == [1, 2, 4, 8]
    assert batch_sizes(24) == [1, 2, 4, 8, 16, 24]


@pytest.mark.parametrize("name", CASES)
def test_streamed_decisions_are_those_of_act_for_each_batch_size(name: str) -> None:
    algorithm = made(*CASES[name])
    policy = algorithm.policy()
    assert policy.decides_later
    stream = CpuStream()
    streamed = StreamedPolicy(policy, 12, stream)
    for seed, agents in enumerate((1, 3, 6, 2, 5, 3, 1)):
        parts = inputs_of(policy, algorithm.spec, agents, seed)
        found = streamed.begin(parts, explored(algorithm, agents)).finish()
        assert_same(found, policy.act(Inputs.joined(parts), explored(algorithm, agents)))
    # Batches of 2, 6, 12, 4, 10, 6 and 2 environments have the sizes 2, 8, 12 and 4.
    assert len(stream.recordings) == 4


def test_two_batches_in_flight_keep_their_own_inputs_and_outputs() -> None:
    algorithm = made(*CASES["impala, lstm"])
    policy = algorithm.policy()
    stream = CpuStream()
    streamed = StreamedPolicy(policy, 4, stream)
    decisions, expected, tickets = [], [], []
    for seed in range(6):
        parts = inputs_of(policy, algorithm.spec, 1 + seed % 2, seed)
        expected.append(policy.act(Inputs.joined(parts), None))
        tickets.append(streamed.begin(parts, None))
        for array in (array for part in parts for array in part):
            array[:] = 0  # the agents go on
        assert not tickets[-1].done()
        if len(tickets) == 2:
            stream.marks[seed - 1].reached = True
            assert [ticket.done() for ticket in tickets] == [True, False]
            decisions.append(tickets.pop(0).finish())
    decisions.append(tickets.pop().finish())
    for found, wanted in zip(decisions, expected):
        assert_same(found, wanted)
    assert len(decisions) == 6


def test_third_batch_in_flight_is_refused() -> None:
    algorithm = made(*CASES["apex_dqn"])
    policy = algorithm.policy()
    streamed = StreamedPolicy(policy, 4, CpuStream())
    parts = inputs_of(policy, algorithm.spec, 1)
    streamed.begin(parts, None), streamed.begin(parts, None)
    with pytest.raises(AssertionError, match="more batches in flight"):
        streamed.begin(parts, None)


@pytest.mark.parametrize("name", ["apex_dqn, images", "r2d2, lstm", "r2d2, normalized"])
def test_recordings_use_parameters_that_are_loaded_later(name: str) -> None:
    algorithm = made(*CASES[name])
    policy, newer = algorithm.policy(), algorithm.policy()
    stream = CpuStream()
    streamed = StreamedPolicy(policy, 4, stream)
    parts = inputs_of(policy, algorithm.spec, 2)
    before = streamed.begin(parts, None).finish()
    if hasattr(newer.network, VARIANCE):
        newer.network.get_buffer(VARIANCE).fill_(4.0)
    streamed.load(parameters.decode(parameters.encode(newer.network)))
    after = streamed.begin(parts, None).finish()
    assert_same(after, newer.act(Inputs.joined(parts), None))
    assert np.abs(after.extras["max_q"] - before.extras["max_q"]).max() > 0.01
    assert len(stream.recordings) == 1


class Noisy(nn.Module):
    """Adds noise to its inputs; draws it in place, or into a new tensor."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.register_buffer("noise", torch.zeros(4))
        self._in_place = in_place

    def forward(self, values: Tensor) -> Tensor:
        return values + self.noise

    def resample_noise(self, generator: torch.Generator | None) -> None:
        new = torch.zeros(4) if generator is None else torch.randn(4, generator=generator)
        if self._in_place:
            self.noise.copy_(new)
        else:
            self.noise = new


@pytest.mark.parametrize("in_place", [True, False])
def test_noise_is_drawn_for_each_batch(in_place: bool, caplog: pytest.LogCaptureFixture) -> None:
    torch.manual_seed(0)
    policy = QPolicy(nn.Sequential(nn.Linear(3, 4), Noisy(in_place)))
    stream = CpuStream()
    streamed = StreamedPolicy(policy, 4, stream)
    parts = inputs_of(policy, VECTORS, 2)
    algorithm = made(*CASES["apex_dqn"])
    with caplog.at_level(logging.WARNING):
        drawn = [streamed.begin(parts, explored(algorithm, 2)).finish() for _ in range(3)]
    values = [decision.extras["max_q"][0].item() for decision in drawn]
    assert len(set(values)) == 3
    joined = Inputs.joined(parts)
    outputs = policy.compute(InputTensors.of(joined, policy.device))  # with the noise drawn last
    arrays = {name: tensor.detach().numpy() for name, tensor in outputs.items()}
    assert_same(drawn[-1], policy.decide(arrays, joined, explored(algorithm, 2)))
    greedy = [streamed.begin(parts, None).finish() for _ in range(2)]
    assert_same(greedy[0], greedy[1])
    assert len(caplog.records) == (0 if in_place else 1)
    if not in_place:
        assert "'q_values' of a second call differs" in caplog.text


def test_batches_are_computed_without_recordings_after_one_fails(
    caplog: pytest.LogCaptureFixture,
) -> None:
    algorithm = made(*CASES["impala, lstm"])
    policy = algorithm.policy()
    stream = CpuStream(RuntimeError("operation not permitted"))
    streamed = StreamedPolicy(policy, 8, stream)
    with caplog.at_level(logging.WARNING):
        for seed, agents in enumerate((1, 3, 4, 2)):
            parts = inputs_of(policy, algorithm.spec, agents, seed)
            found = streamed.begin(parts, explored(algorithm, agents)).finish()
            assert_same(found, policy.act(Inputs.joined(parts), explored(algorithm, agents)))
    assert stream.refused == 1
    assert [record.getMessage() for record in caplog.records] == [
        "batches of 2 cannot be a CUDA graph: operation not permitted; computing without graphs"
    ]


class Counting(QPolicy):
    """Has state outside of tensors."""

    calls = 0

    def compute(self, inputs: InputTensors) -> Mapping[str, Tensor]:
        self.calls += 1
        return {"q_values": self.network(inputs.observations) + self.calls}


def test_policy_with_state_outside_of_tensors_is_not_recorded(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    policy = Counting(nn.Linear(3, 4))
    stream = CpuStream()
    streamed = StreamedPolicy(policy, 4, stream)
    parts = inputs_of(policy, VECTORS, 2)
    first, second = (streamed.begin(parts, None).finish() for _ in range(2))
    np.testing.assert_allclose(second.extras["max_q"] - first.extras["max_q"], 1.0, atol=1e-5)
    assert len(caplog.records) == 1 and "compute depends on more than" in caplog.text


def test_policy_that_defines_only_act_decides_at_once() -> None:
    class Own(QPolicy):
        def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
            return Decision(np.full(len(inputs.observations), 3), inputs.core_state, {})

    policy = Own(nn.Linear(3, 4))
    assert not policy.decides_later
    one = batched(policy, 4, CpuStream())
    assert isinstance(one, ImmediatePolicy)
    ticket = one.begin(inputs_of(policy, VECTORS, 2), None)
    assert ticket.done() and ticket.finish().actions.tolist() == [3, 3, 3, 3]


def test_policies_that_decide_later() -> None:
    class Plain(QAlgorithm):
        def network(self) -> nn.Module:
            return nn.Linear(3, 4)

    plain = Plain(Plain.Config(), VECTORS).policy()
    assert plain.decides_later
    plain.act = MethodType(lambda self, inputs, exploration: None, plain)  # type: ignore[method-assign]
    assert not plain.decides_later
    assert not ApexDPG(ApexDPG.Config(), CONTINUOUS).policy().decides_later


def test_policy_without_methods_says_what_to_define() -> None:
    class Empty(Policy):
        network = nn.Linear(3, 4)

    parts = inputs_of(Empty(), VECTORS, 1)
    with pytest.raises(NotImplementedError, match="Empty must define compute and decide, or act"):
        Empty().act(parts[0], None)
