"""Encoded parameters, and version numbers that never go back."""

from __future__ import annotations

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.algos.policy import Policy
from apex.daemons.learner.parameter_versions import Publication, PublicationBoard, VersionCounter
from apex.errors import CheckpointError
from apex.networks import parameters

torch.set_num_threads(1)


def test_versions_rise_by_one_from_zero(tmp_path):
    counter = VersionCounter(tmp_path / "versions")
    assert [counter.take() for _ in range(2500)] == list(range(2500))


def test_version_block_is_on_disk_before_its_first_version_is_taken(tmp_path):
    path = tmp_path / "versions"
    counter = VersionCounter(path)
    for version in range(2001):
        assert counter.take() == version
        assert int(path.read_text()) > version
    assert path.read_text() == "3000"


def test_version_never_goes_back_across_restarts(tmp_path):
    newest, starts = -1, []
    for taken in (1, 999, 1000, 1001, 0, 5):
        counter = VersionCounter(tmp_path / "versions")
        for number in range(taken):
            version = counter.take()
            assert version > newest
            newest = version
            starts += [version] if number == 0 else []
    assert starts == [0, 1000, 2000, 3000, 5000]


@pytest.mark.parametrize("damage", ["5p0", "", "12", None])
def test_versions_continue_above_the_checkpoint_when_their_file_is_damaged(
    tmp_path, damage, caplog
):
    path = tmp_path / "versions"
    if damage is not None:
        path.write_text(damage)
    first = VersionCounter(path, known=5321).take()
    assert first > 5321 + 10**6 and "parameter versions continue from" in caplog.text
    assert VersionCounter(path, known=first).take() > first


def test_version_is_not_taken_when_its_block_cannot_be_reserved(tmp_path):
    folder = tmp_path / "missing"
    counter = VersionCounter(folder / "versions")
    with pytest.raises(OSError, match="missing"):
        counter.take()
    folder.mkdir()
    version = counter.take()
    assert int((folder / "versions").read_text()) > version


def test_reservation_keeps_failing_while_the_disk_fails(tmp_path):
    """A version above the block on disk would be reused after a restart."""
    counter = VersionCounter(tmp_path / "missing" / "versions")
    for _ in range(2):
        with pytest.raises(OSError, match="missing"):
            counter.take()


def test_encoded_network_decodes_to_the_same_tensors():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    network.to(memory_format=torch.channels_last)
    data = parameters.encode(network)
    decoded = parameters.decode(data)
    expected = network.state_dict()
    assert decoded.keys() == expected.keys()
    assert all(torch.equal(decoded[name], expected[name]) for name in expected)


def test_encoding_is_a_copy_that_later_updates_do_not_change():
    network = torch.nn.Linear(2, 2)
    before = network.weight.detach().clone()
    data = parameters.encode(network)
    with torch.no_grad():
        network.weight.add_(1.0)
    assert torch.equal(parameters.decode(data)["weight"], before)


@pytest.mark.parametrize("data", [b"", b"short", b"\xff" * 64, bytes(64)])
def test_malformed_parameter_bytes_are_refused(data):
    with pytest.raises(CheckpointError, match="parameters"):
        parameters.decode(data)


def test_board_keeps_only_the_newest_publication():
    board = PublicationBoard()
    assert board.newest() is None
    for version in (1, 2):
        board.put(Publication(version, 0, 0, 0.0, b"", 0))
    assert board.newest().param_version == 2


def network() -> nn.Module:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def test_decoded_parameters_equal_those_of_safetensors() -> None:
    data = parameters.encode(network())
    expected, found = safetensors.torch.load(data), parameters.decode(data)
    assert found.keys() == expected.keys() and len(found) == 9
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name
    assert found["1.num_batches_tracked"].shape == ()  # int64, of rank 0


def test_decoded_parameters_are_writable_views() -> None:
    data = bytearray(parameters.encode(network()))
    found = parameters.decode(memoryview(data))
    data[-8:] = np.array([1.5, -2.5], dtype=np.float32).tobytes()
    assert any(tensor.flatten()[-2:].tolist() == [1.5, -2.5] for tensor in found.values())


def test_half_precision_and_empty_tensors_are_read() -> None:
    data = safetensors.torch.save(
        {"b": torch.tensor([1.5], dtype=torch.bfloat16), "e": torch.zeros(0, 3)}, {"made": "here"}
    )
    found = parameters.decode(data)
    assert found["b"].tolist() == [1.5] and found["b"].dtype == torch.bfloat16
    assert found["e"].shape == (0, 3)


@pytest.mark.parametrize("length", [0, 5, 8, 20, 300, 700])
def test_truncated_bytes_are_refused(length: int) -> None:
    with pytest.raises(CheckpointError, match="parameters"):
        parameters.decode(parameters.encode(network())[:length])


def test_bytes_with_a_false_header_are_refused() -> None:
    data = parameters.encode(network())
    for old, new in ((b'"F32"', b'"F99"'), (b'"F32"', b'"F16"'), (b'"shape":[4', b'"shape":[9')):
        assert old in data
        with pytest.raises(CheckpointError, match="parameters"):
            parameters.decode(data.replace(old, new, 1))


def test_broken_bytes_raise_only_parameter_errors() -> None:
    data, rng = parameters.encode(network()), np.random.default_rng(1)
    refused = 0
    for _ in range(3000):
        broken = bytearray(data)
        for position in rng.integers(0, 700, rng.integers(1, 4)):
            broken[position] = rng.integers(256)
        try:
            parameters.decode(bytes(broken))
        except CheckpointError:
            refused += 1
    assert refused > 1500


class Acting(Policy):
    """A policy of which only `load` is tested."""

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
    policy.load(parameters.decode(parameters.encode(published)))
    frames = torch.rand(5, 3, 3, 3)
    assert torch.equal(policy.network.eval()(frames), published(frames))
    assert policy.network[0].weight.stride() == order  # type: ignore[index,union-attr]


def test_parameters_of_another_network_are_not_loaded() -> None:
    policy, others = Acting(), parameters.decode(parameters.encode(nn.Linear(3, 3)))
    with pytest.raises(RuntimeError, match="Missing key"):
        policy.load(others)
