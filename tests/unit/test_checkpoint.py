"""Checkpoints: written atomically, verified when read, pruned."""

from __future__ import annotations

import errno
import json
import logging
import os
import pickle
from pathlib import Path

import msgspec
import pytest
import torch

from apex.errors import CheckpointError
from apex.networks import parameters
from apex.runs import checkpoint
from apex.runs.checkpoint import LEARNER, MANIFEST, PARAMETERS, Manifest
from tests.support.builders import env_spec

torch.set_num_threads(1)


def manifest(step: int, **changes: object) -> Manifest:
    fields = {
        "learner_step": step, "param_version": 10 * step, "env_steps": 4 * step, "train_s": 1.5,
        "config": {"env": {"id": "X-v0"}, "list": [1, 2.5, None]}, "env": env_spec((84, 84)),
    }  # fmt: skip
    return Manifest(**{**fields, **changes})


def save(folder: Path, step: int, prefix: str = "step", *, learner: bool = True) -> Path:
    network = torch.nn.Linear(3, 2)
    with torch.no_grad():
        network.weight.fill_(step)
    state = {"weights": torch.full((2,), float(step)), "updates": step, "rng": [1, "a", None]}
    return checkpoint.save(
        folder, prefix, manifest(step), parameters.encode(network), state if learner else None
    )


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 0xFF
    path.write_bytes(data)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_checkpoint_reads_back_as_it_was_written(tmp_path):
    path = save(tmp_path, 7)
    assert path == tmp_path / "step_0000000007" and names(tmp_path) == ["step_0000000007"]
    found = checkpoint.load(path)
    assert msgspec.structs.replace(found.manifest, sha256={}) == manifest(7)
    assert parameters.decode(found.parameters())["weight"].tolist() == [[7.0] * 3] * 2
    state = found.learner_state()
    assert state["weights"].tolist() == [7.0, 7.0]
    assert (state["updates"], state["rng"]) == (7, [1, "a", None])


def test_checkpoint_of_parameters_only_cannot_be_resumed_from(tmp_path):
    found = checkpoint.load(save(tmp_path, 1, learner=False))
    assert parameters.decode(found.parameters())["weight"].shape == (2, 3)
    with pytest.raises(CheckpointError, match="parameters only"):
        found.learner_state()


def test_saving_the_same_step_twice_keeps_the_later_one(tmp_path):
    save(tmp_path, 3, learner=False)
    save(tmp_path, 3)
    assert names(tmp_path) == ["step_0000000003"]
    assert checkpoint.load(tmp_path / "step_0000000003").learner_state()["updates"] == 3


def test_better_of_two_best_checkpoints_is_found_and_a_new_one_replaces_both(tmp_path):
    assert checkpoint.best(tmp_path) is None
    for step, mean in ((50, 7.0), (60, -3.0), (40, 9.0)):
        checkpoint.save(tmp_path, "best", manifest(step, mean_return=mean), b"")
    assert checkpoint.best(tmp_path).path.name == "best_0000000040"
    assert checkpoint.find(tmp_path / "best_0000000050").manifest.mean_return == 7.0
    checkpoint.save_best(tmp_path, manifest(45, mean_return=11.0), b"")
    assert names(tmp_path) == ["best_0000000045"]


def test_newest_is_chosen_by_step_and_not_by_time(tmp_path):
    for step in (9, 1000, 20):
        save(tmp_path, step)
    assert checkpoint.newest(tmp_path).manifest.learner_step == 1000


def test_newest_of_an_empty_folder_is_none(tmp_path):
    assert checkpoint.newest(tmp_path) is None and checkpoint.newest(tmp_path / "none") is None


@pytest.mark.parametrize("name", [PARAMETERS, LEARNER])
@pytest.mark.parametrize("position", [0, 100, -1])
def test_checkpoint_with_a_corrupt_byte_is_skipped_with_a_message(tmp_path, caplog, name, position):
    save(tmp_path, 1)
    bad = save(tmp_path, 2)
    flip(bad / name, position)
    with pytest.raises(CheckpointError, match=f"step_0000000002: {name} is corrupt"):
        checkpoint.load(bad)
    with caplog.at_level(logging.ERROR, "apex.runs.checkpoint"):
        assert checkpoint.newest(tmp_path).manifest.learner_step == 1
    assert name in caplog.text and "step_0000000002" in caplog.text


@pytest.mark.parametrize("name", [PARAMETERS, LEARNER, MANIFEST])
@pytest.mark.parametrize("damage", ["missing", "empty", "half"])
def test_checkpoint_with_a_half_written_file_is_skipped(tmp_path, name, damage):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    data = path.read_bytes()
    path.write_bytes({"missing": b"", "empty": b"", "half": data[: len(data) // 2]}[damage])
    if damage == "missing":
        path.unlink()
    assert checkpoint.newest(tmp_path).manifest.learner_step == 1


def test_any_flipped_byte_of_a_manifest_raises_nothing_but_checkpoint_errors(tmp_path):
    path = save(tmp_path, 2)
    good, refused = (path / MANIFEST).read_bytes(), 0
    for position in range(len(good)):
        for mask in (0xFF, 0x01):
            data = bytearray(good)
            data[position] ^= mask
            (path / MANIFEST).write_bytes(data)
            try:
                checkpoint.load(path)
            except CheckpointError:
                refused += 1
    assert refused > len(good)


def test_stray_file_with_a_checkpoints_name_is_skipped(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "step_9999999999").write_text("not a folder")
    assert checkpoint.newest(tmp_path).manifest.learner_step == 1


def test_half_written_temporary_folder_is_ignored_and_pruned(tmp_path):
    save(tmp_path, 1)
    left = tmp_path / ".step_0000000005.999999.tmp"
    left.mkdir()
    (left / PARAMETERS).write_bytes(b"half")
    other = tmp_path / ".best_0000000005.999999.tmp"
    other.mkdir()
    assert checkpoint.newest(tmp_path).manifest.learner_step == 1
    checkpoint.prune(tmp_path, "step", 3, 1)
    assert names(tmp_path) == [other.name, "step_0000000001"]


def test_prune_keeps_the_newest_three_of_its_own_kind(tmp_path):
    for step in (5, 1, 40, 3, 1000):
        save(tmp_path, step)
    save(tmp_path, 2, "best")
    checkpoint.prune(tmp_path, "step", 3, 1000)
    assert names(tmp_path) == [
        "best_0000000002", "step_0000000005", "step_0000000040", "step_0000001000",
    ]  # fmt: skip


def test_prune_keeps_the_newest_valid_checkpoint_when_a_later_one_is_corrupt(tmp_path, caplog):
    """Training went back to step 100: that checkpoint is the newest valid one and must stay."""
    for step in (100, 500):
        save(tmp_path, step)
    (tmp_path / "step_0000000500" / PARAMETERS).write_bytes(b"damaged")
    checkpoint.prune(tmp_path, "step", 1, 100)
    assert names(tmp_path) == ["step_0000000100", "step_0000000500"]
    assert checkpoint.newest(tmp_path).manifest.learner_step == 100
    save(tmp_path, 501)
    checkpoint.prune(tmp_path, "step", 1, 501)
    assert names(tmp_path) == ["step_0000000501"]


def test_unreadable_checkpoint_is_skipped(tmp_path, monkeypatch, caplog):
    for step in (1, 2):
        save(tmp_path, step)
    read = Path.read_bytes

    def broken(path: Path) -> bytes:
        if path.parent.name == "step_0000000002" and path.name == PARAMETERS:
            raise OSError(errno.EIO, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", broken)
    assert checkpoint.newest(tmp_path).manifest.learner_step == 1
    assert "Input/output error" in caplog.text


def test_failed_write_leaves_no_files_and_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full_disk(path: Path, data: bytes) -> None:
        path.write_bytes(data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_synced", full_disk)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2)
    assert names(tmp_path) == ["step_0000000001"]
    assert checkpoint.newest(tmp_path).manifest.learner_step == 1


class Touch:
    """Touches a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_loading_learner_state_runs_no_code(tmp_path):
    victim = tmp_path / "ran"
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    state = {"weights": torch.zeros(1), "trap": Touch(victim)}
    path = checkpoint.save(folder, "step", manifest(1), b"", state)
    with pytest.raises(pickle.UnpicklingError, match=r"(?i)weights.only"):
        checkpoint.load(path).learner_state()
    assert not victim.exists()


def test_find_takes_a_checkpoint_or_the_best_of_a_run(tmp_path):
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    with pytest.raises(CheckpointError, match="no checkpoint yet"):
        checkpoint.find(tmp_path)
    newest = save(folder, 9)
    assert checkpoint.find(tmp_path).path == newest == checkpoint.find(newest).path
    best = save(folder, 4, "best", learner=False)
    assert checkpoint.find(tmp_path).path == best
    with pytest.raises(CheckpointError, match="no such run or checkpoint"):
        checkpoint.find(tmp_path / "nowhere")


def test_state_writable_by_others_is_not_unpickled(tmp_path):
    path = save(tmp_path, 1)
    assert checkpoint.load(path).learner_state()["updates"] == 1
    (path / LEARNER).chmod(0o620)
    with pytest.raises(CheckpointError, match=rf"{LEARNER} is writable by other users"):
        checkpoint.load(path).learner_state()
    (path / LEARNER).chmod(0o600)
    path.chmod(0o777)
    with pytest.raises(CheckpointError, match="step_0000000001 is writable by other users"):
        checkpoint.load(path).learner_state()
    path.chmod(0o700)
    elsewhere = tmp_path / "elsewhere.pt"
    (path / LEARNER).rename(elsewhere)
    (path / LEARNER).symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="is a link"):
        checkpoint.load(path).learner_state()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give a file away")
@pytest.mark.parametrize("part", ["", LEARNER])
def test_state_of_another_user_is_not_unpickled(tmp_path, part):
    path = save(tmp_path, 1)
    os.chown(path / part, 65534, 65534)
    with pytest.raises(CheckpointError, match=r"belongs to another user \(id 65534\)"):
        checkpoint.load(path).learner_state()


@pytest.mark.parametrize(
    "digests", [{}, {LEARNER: "00"}, {PARAMETERS: "00", "../../../../etc/passwd": "00"}]
)
def test_manifest_that_lists_other_files_is_refused(tmp_path, digests):
    path = save(tmp_path, 1)
    broken = json.loads((path / MANIFEST).read_text()) | {"sha256": digests}
    (path / MANIFEST).write_text(json.dumps(broken))
    with pytest.raises(CheckpointError, match="SHA-256"):
        checkpoint.load(path)
