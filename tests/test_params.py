"""Parameters: bytes that are checked, and versions that never go back."""

from __future__ import annotations

import pytest
import torch

from apex import params
from apex.errors import CheckpointError
from apex.publications import Publication, PublicationBoard, VersionCounter

torch.set_num_threads(1)


def test_versions_rise_by_one_from_zero(tmp_path):
    counter = VersionCounter(tmp_path / "versions")
    assert [counter.take() for _ in range(2500)] == list(range(2500))


def test_block_is_on_the_disk_before_its_first_version_is_given(tmp_path):
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
def test_versions_go_on_above_a_checkpoint_when_their_file_is_damaged(tmp_path, damage, caplog):
    path = tmp_path / "versions"
    if damage is not None:
        path.write_text(damage)
    first = VersionCounter(path, known=5321).take()
    assert first > 5321 + 10**6 and "versions go on from" in caplog.text
    assert VersionCounter(path, known=first).take() > first


def test_version_is_not_given_when_its_block_could_not_be_reserved(tmp_path):
    folder = tmp_path / "missing"
    counter = VersionCounter(folder / "versions")
    with pytest.raises(OSError, match="missing"):
        counter.take()
    folder.mkdir()
    version = counter.take()
    assert int((folder / "versions").read_text()) > version


def test_reservation_fails_again_while_the_disk_does(tmp_path):
    """A version above what is on the disk would be given a second time after a restart."""
    counter = VersionCounter(tmp_path / "missing" / "versions")
    for _ in range(2):
        with pytest.raises(OSError, match="missing"):
            counter.take()


def test_encoded_network_decodes_to_the_same_tensors():
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    network.to(memory_format=torch.channels_last)
    data = params.encode(network)
    decoded = params.decode(data)
    expected = network.state_dict()
    assert decoded.keys() == expected.keys()
    assert all(torch.equal(decoded[name], expected[name]) for name in expected)


def test_encoding_is_a_copy_that_later_updates_leave_alone():
    network = torch.nn.Linear(2, 2)
    before = network.weight.detach().clone()
    data = params.encode(network)
    with torch.no_grad():
        network.weight.add_(1.0)
    assert torch.equal(params.decode(data)["weight"], before)


@pytest.mark.parametrize("data", [b"", b"short", b"\xff" * 64, bytes(64)])
def test_bytes_that_are_no_parameters_are_refused(data):
    with pytest.raises(CheckpointError, match="parameters"):
        params.decode(data)


def test_board_holds_the_newest_publication_only():
    board = PublicationBoard()
    assert board.newest() is None
    for version in (1, 2):
        board.put(Publication(version, 0, 0, 0.0, b"", 0))
    assert board.newest().param_version == 2
