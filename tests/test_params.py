"""Parameters as bytes, beside safetensors' own reading of them."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from apex import params
from apex.acting.agent import Decision, Exploration, Inputs
from apex.algos.base import Policy
from apex.errors import CheckpointError


def network() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def test_decoded_parameters_are_those_that_safetensors_reads() -> None:
    data = params.encode(network())
    expected, found = safetensors.torch.load(data), params.decode(data)
    assert found.keys() == expected.keys() and len(found) == 9
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    assert found["1.num_batches_tracked"].shape == ()  # int64, of rank 0


def test_decoded_parameters_are_views_of_memory_that_can_be_written_to() -> None:
    data = bytearray(params.encode(network()))
    found = params.decode(memoryview(data))
    data[-8:] = np.array([1.5, -2.5], dtype=np.float32).tobytes()
    assert any(tensor.flatten()[-2:].tolist() == [1.5, -2.5] for tensor in found.values())


def test_half_precision_and_empty_tensors_are_read() -> None:
    data = safetensors.torch.save(
        {"b": torch.tensor([1.5], dtype=torch.bfloat16), "e": torch.zeros(0, 3)}, {"made": "here"}
    )
    found = params.decode(data)
    assert found["b"].tolist() == [1.5] and found["b"].dtype == torch.bfloat16
    assert found["e"].shape == (0, 3)


@pytest.mark.parametrize("length", [0, 5, 8, 20, 300, 700])
def test_cut_bytes_are_refused(length: int) -> None:
    with pytest.raises(CheckpointError, match="parameters"):
        params.decode(params.encode(network())[:length])


def test_bytes_whose_header_lies_are_refused() -> None:
    data = params.encode(network())
    for old, new in ((b'"F32"', b'"F99"'), (b'"F32"', b'"F16"'), (b'"shape":[4', b'"shape":[9')):
        assert old in data
        with pytest.raises(CheckpointError, match="parameters"):
            params.decode(data.replace(old, new, 1))


def test_no_broken_bytes_raise_anything_else() -> None:
    data, rng = params.encode(network()), np.random.default_rng(1)
    refused = 0
    for _ in range(3000):
        broken = bytearray(data)
        for position in rng.integers(0, 700, rng.integers(1, 4)):
            broken[position] = rng.integers(256)
        try:
            params.decode(bytes(broken))
        except CheckpointError:
            refused += 1
    assert refused > 1500


class Acting(Policy):
    """A policy that is only loaded."""

    def __init__(self) -> None:
        self.network = network()

    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        raise NotImplementedError


def test_loaded_policy_computes_what_the_published_network_does() -> None:
    published, policy = network().eval(), Acting()
    with torch.no_grad():
        for parameter in published.parameters():
            parameter.mul_(2.0).add_(0.25)
    order = policy.network[0].weight.stride()  # type: ignore[index,union-attr]
    policy.load(params.decode(params.encode(published)))
    frames = torch.rand(5, 3, 3, 3)
    assert torch.equal(policy.network.eval()(frames), published(frames))
    assert policy.network[0].weight.stride() == order  # type: ignore[index,union-attr]


def test_parameters_of_another_network_are_not_loaded() -> None:
    policy, others = Acting(), params.decode(params.encode(nn.Linear(3, 3)))
    with pytest.raises(RuntimeError, match="Missing key"):
        policy.load(others)
