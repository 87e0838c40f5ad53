"""Copies of batches to a device: overlapping arrays are copied once."""

from __future__ import annotations

import numpy as np
import torch

from apex.daemons.learner.device_batches import copied


class Copies:
    """Copies memory as a transfer to a device would, and records the sizes."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        assert tensor.is_contiguous()
        self.sizes.append(tensor.nbytes)
        return tensor.clone()


def test_overlapping_observations_are_copied_once_with_all_their_frames():
    # As decompressed from LZ4: 2 transitions of 7 frames of 3x3; stacks of 4, n = 3.
    raw = bytearray(range(126))
    frames = torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).reshape(2, 7, 3, 3))
    batch = {
        "observation": frames[:, :4],
        "next_observation": frames[:, 3:],
        "action": np.array([5, 6], dtype=np.int32),
    }
    copy = Copies()
    tensors = copied(batch, copy)
    assert copy.sizes == [126, 8]
    raw[:] = bytes(126)
    assert tensors["observation"][0, 0].flatten().tolist() == list(range(9))
    assert tensors["observation"][1, 3].flatten().tolist() == list(range(90, 99))
    assert tensors["next_observation"][0, 0].flatten().tolist() == list(range(27, 36))
    assert tensors["next_observation"][1, 3].flatten().tolist() == list(range(117, 126))
    assert tensors["next_observation"].shape == (2, 4, 3, 3)
    assert tensors["action"].tolist() == [5, 6]


def test_small_view_of_a_large_array_is_copied_without_the_rest():
    large = torch.arange(1000.0).reshape(100, 10)
    copy = Copies()
    tensors = copied({"part": large[10:12, ::2], "other": large[0]}, copy)
    assert copy.sizes == [40, 40]
    assert tensors["part"].tolist() == [[100, 102, 104, 106, 108], [110, 112, 114, 116, 118]]


def test_reinterpreted_and_transposed_views_keep_their_values():
    numbers = torch.arange(4, dtype=torch.int32)
    arrays = {"bytes": numbers.view(torch.uint8), "turned": numbers.view(2, 2).T, "all": numbers}
    tensors = copied(arrays, Copies())
    assert tensors["bytes"].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]
    assert tensors["turned"].tolist() == [[0, 2], [1, 3]]
    assert tensors["all"].tolist() == [0, 1, 2, 3]


def test_arrays_without_elements_keep_their_shape():
    assert copied({"core_state": np.zeros((3, 0), np.float32)}, Copies())["core_state"].shape == (
        3,
        0,
    )
