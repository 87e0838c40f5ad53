"""Batches of the inference server on a GPU: CUDA graphs, streams, pinned memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apex.acting.decisions import Inputs
from apex.api import R2D2, ApexDQN, Impala, InputTensors, QPolicy
from apex.daemons.inference.batched_policy import StreamedPolicy, batched
from apex.envs.spec import EnvSpec
from apex.networks import parameters

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
GPU = torch.device("cuda")
IMAGES = EnvSpec("Test-v0", (12, 12), "uint8", 2, 4)
CONV = {"conv": ((4, 3, 2),)}
CASES = {
    "apex_dqn": (ApexDQN, CONV),
    "r2d2": (R2D2, {**CONV, "burn_in": 3, "unroll_length": 5, "overlap": 2, "lstm": 4}),
    "impala": (Impala, {**CONV, "unroll_length": 9, "lstm": 4}),
}


def inputs_of(envs: int, core_size: int, seed: int) -> Inputs:
    rng = np.random.default_rng(seed)
    return Inputs(
        rng.integers(0, 256, (envs, *IMAGES.policy_shape), dtype=np.uint8),
        rng.normal(size=(envs, core_size)).astype(np.float32),
        rng.integers(0, 4, envs),
        rng.normal(size=envs).astype(np.float32),
    )


@pytest.mark.parametrize("name", CASES)
def test_streamed_batches_on_a_gpu_are_those_of_a_cpu(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    kind, settings = CASES[name]
    torch.manual_seed(0)
    algorithm = kind(kind.Config(**settings), IMAGES)
    here, there = algorithm.policy(), algorithm.policy()
    there.to(GPU)
    streamed = batched(there, 12)
    assert isinstance(streamed, StreamedPolicy)
    for version in range(2):  # the second time with other parameters
        newest = algorithm.policy().network
        for policy in (here, streamed):
            policy.load(parameters.decode(parameters.encode(newest)))
        begun = []
        for seed, envs in enumerate((1, 3, 12, 5, 8, 12)):
            inputs = inputs_of(envs, here.core_size, 10 * version + seed)
            begun.append((streamed.begin([inputs], None), here.act(inputs, None)))
            if len(begun) == 2:
                ticket, expected = begun.pop(0)
                found = ticket.finish()
                assert ticket.done()
                for extra, values in expected.extras.items():
                    np.testing.assert_allclose(found.extras[extra], values, rtol=2e-2, atol=2e-2)
                np.testing.assert_allclose(found.core_state, expected.core_state, atol=2e-2)
        begun.pop()[0].finish()
    assert caplog.records == [], "every size was recorded"


class Waiting(QPolicy):
    """Reads a value of the device, which a CUDA graph cannot record."""

    def compute(self, inputs: InputTensors) -> Mapping[str, Tensor]:
        q_values = self.network(inputs.observations)
        return {"q_values": q_values + 0.0 * q_values.sum().item()}


class Noisy(nn.Module):
    """Adds noise to its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("noise", torch.zeros(4))

    def forward(self, values: Tensor) -> Tensor:
        return values + self.noise

    def resample_noise(self, generator: torch.Generator | None) -> None:
        if generator is None:
            self.noise.zero_()
        else:
            self.noise.normal_(generator=generator)


def test_policy_that_waits_for_the_gpu_is_computed_without_graphs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    policy = Waiting(nn.Sequential(nn.Linear(3, 4), Noisy()))
    policy.to(GPU)
    streamed = batched(policy, 4)
    nothing = np.zeros(2, np.float32)
    inputs = Inputs(np.ones((2, 3), np.float32), np.zeros((2, 0), np.float32), nothing, nothing)
    with caplog.at_level(logging.WARNING):
        noisy = [streamed.begin([inputs], lambda q: q.argmax(1)).finish() for _ in range(3)]
    assert len({decision.extras["max_q"][0] for decision in noisy}) == 3
    assert len(caplog.records) == 1 and "cannot be a CUDA graph" in caplog.text
