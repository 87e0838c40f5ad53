"""Transfer of batches to a device: layout, reused buffers, one copy, overlapping arrays once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

from apex.algos.batches import PackedSequences, expanded
from apex.algos.impala import Impala
from apex.daemons.learner.batch_layout import BatchLayout
from apex.daemons.learner.device_batches import Transfer, transfer_to
from apex.data.chunks import Items
from apex.errors import DeviceError, DeviceMemoryError, ExitCode
from tests.support.builders import env_spec


class Device:
    """Host buffers and a device without a GPU; records the bytes of buffers and copies.

    Args:
        error: raised by each allocation, if given.
        sending: called while a copy is in progress.
    """

    def __init__(
        self, error: Exception | None = None, sending: Callable[[], object] = lambda: None
    ) -> None:
        self.buffers: list[int] = []
        self.copies: list[int] = []
        self._error, self._sending = error, sending
        self.transfer = Transfer(self._allocate, self._send)

    def _allocate(self, nbytes: int) -> torch.Tensor:
        if self._error is not None:
            raise self._error
        self.buffers.append(nbytes)
        return torch.full((nbytes,), 99, dtype=torch.uint8)

    def _send(self, staged: torch.Tensor) -> torch.Tensor:
        assert staged.dtype == torch.uint8 and staged.is_contiguous()
        self._sending()
        self.copies.append(len(staged))
        return staged.clone()


def test_arrays_begin_at_multiples_of_256_bytes():
    layout = BatchLayout.of(
        [torch.zeros(3), torch.zeros(0, 5), torch.zeros(300, dtype=torch.uint8), torch.zeros(())]
    )
    assert layout.spans == ((0, 12), (256, 256), (256, 556), (768, 772))
    assert layout.nbytes == 772
    assert BatchLayout((), ()).nbytes == 0


def test_layout_depends_only_on_dtypes_and_shapes():
    first = BatchLayout.of([torch.zeros(2, 3), torch.zeros(4, dtype=torch.int64)])
    turned = torch.ones(3, 2).T
    same = BatchLayout.of([turned, torch.ones(8, dtype=torch.int64)[::2]])
    assert first == same and first.spans == same.spans == ((0, 24), (256, 288))
    assert first != BatchLayout.of([turned, torch.zeros(4, dtype=torch.int32)])


def test_views_of_a_buffer_hold_every_dtype():
    arrays = [
        torch.tensor([True, False, True]),
        torch.tensor([[1.5, -2.0]]),
        torch.tensor([-(2**40)]),
        torch.tensor(7, dtype=torch.int16),
        torch.tensor([2.5], dtype=torch.bfloat16),
    ]
    layout = BatchLayout.of(arrays)
    buffer = torch.full((layout.nbytes,), 99, dtype=torch.uint8)
    for view, array in zip(layout.views(buffer), arrays, strict=True):
        view.copy_(array)
    for view, array in zip(layout.views(buffer.clone()), arrays, strict=True):
        assert view.dtype == array.dtype and view.tolist() == array.tolist()


def test_batch_crosses_in_one_copy_and_its_tensors_are_views_of_it():
    device = Device()
    batch = {"a": np.arange(3, dtype=np.int32), "b": (torch.ones(2, 2), "text"), "c": 5}
    moved = device.transfer(batch)
    assert device.copies == [256 + 16] and device.buffers == [256 + 16]
    assert moved["a"].tolist() == [0, 1, 2] and moved["b"][0].tolist() == [[1, 1], [1, 1]]
    assert moved["b"][1] == "text" and moved["c"] == 5
    assert moved["a"].untyped_storage().data_ptr() == moved["b"][0].untyped_storage().data_ptr()


def test_overlapping_observations_cross_once_with_all_their_frames():
    # As decompressed from LZ4: 2 transitions of 7 frames of 3x3; stacks of 4, n = 3.
    raw = bytearray(range(126))
    frames = torch.from_numpy(np.frombuffer(raw, dtype=np.uint8).reshape(2, 7, 3, 3))
    batch = {
        "action": np.array([5, 6], dtype=np.int32),
        "observation": frames[:, :4],
        "next_observation": frames[:, 3:],
    }
    device = Device()
    tensors = device.transfer(batch)
    assert device.copies == [256 + 126]
    raw[:] = bytes(126)
    assert tensors["observation"][0, 0].flatten().tolist() == list(range(9))
    assert tensors["observation"][1, 3].flatten().tolist() == list(range(90, 99))
    assert tensors["next_observation"][0, 0].flatten().tolist() == list(range(27, 36))
    assert tensors["next_observation"][1, 3].flatten().tolist() == list(range(117, 126))
    assert tensors["next_observation"].shape == (2, 4, 3, 3)
    assert tensors["action"].tolist() == [5, 6]


def test_small_view_of_a_large_array_crosses_without_the_rest():
    large = torch.arange(1000.0).reshape(100, 10)
    device = Device()
    tensors = device.transfer({"part": large[10:12, ::2], "other": large[0]})
    assert device.copies == [256 + 40]
    assert tensors["part"].tolist() == [[100, 102, 104, 106, 108], [110, 112, 114, 116, 118]]
    assert tensors["other"].tolist() == list(range(10))


def test_reinterpreted_and_transposed_views_keep_their_values():
    numbers = torch.arange(4, dtype=torch.int32)
    arrays = {"bytes": numbers.view(torch.uint8), "turned": numbers.view(2, 2).T, "all": numbers}
    tensors = Device().transfer(arrays)
    assert tensors["bytes"].tolist() == [0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0]
    assert tensors["turned"].tolist() == [[0, 2], [1, 3]]
    assert tensors["all"].tolist() == [0, 1, 2, 3]


def test_reversed_and_empty_arrays_keep_their_shape_and_values():
    batch = {"reversed": np.arange(3)[::-1], "core_state": np.zeros((3, 0), np.float32)}
    tensors = Device().transfer(batch)
    assert tensors["reversed"].tolist() == [2, 1, 0]
    assert tensors["core_state"].shape == (3, 0)
    assert Device().transfer({"no": "tensor"}) == {"no": "tensor"}


def test_buffer_is_reused_and_grows_to_the_largest_batch():
    device = Device()
    moved = [device.transfer(torch.full((size,), size)) for size in (4, 3, 6, 6, 2)]
    assert device.buffers == [32, 48]
    assert device.copies == [32, 24, 48, 48, 16]
    assert [tensor.tolist() for tensor in moved] == [[4] * 4, [3] * 3, [6] * 6, [6] * 6, [2] * 2]


def test_batches_that_cross_at_the_same_time_have_buffers_of_their_own():
    meeting = threading.Barrier(2, timeout=30)
    device = Device(sending=meeting.wait)
    batches = [torch.full((5,), number) for number in range(20)]
    with ThreadPoolExecutor(2) as threads:
        moved = list(threads.map(device.transfer, batches))
    assert [tensor.tolist() for tensor in moved] == [[number] * 5 for number in range(20)]
    assert device.buffers == [40, 40]


def test_buffer_is_used_again_after_a_failed_copy():
    failures = [RuntimeError("the copy failed")]

    def fail_once() -> None:
        if failures:
            raise failures.pop()

    device = Device(sending=fail_once)
    with pytest.raises(RuntimeError, match="the copy failed"):
        device.transfer(torch.ones(3))
    assert device.transfer(torch.ones(3)).tolist() == [1, 1, 1]
    assert device.buffers == [12]


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("no more"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("cudaErrorMemoryAllocation: Memory allocation failed"),
    ],
)
def test_lack_of_pinned_memory_says_what_to_lower(error):
    with pytest.raises(DeviceMemoryError, match=r"12 bytes of pinned.*learner\.batch_size") as got:
        Device(error).transfer(torch.ones(3))
    assert str(error) in str(got.value) and got.value.exit_code == ExitCode.OUT_OF_MEMORY


def test_other_error_of_pinning_is_not_called_a_lack_of_memory():
    error = RuntimeError("CUDA error: unspecified launch failure")
    with pytest.raises(DeviceError, match=r"unspecified launch failure.*not a lack of") as got:
        Device(error).transfer(torch.ones(3))
    assert got.value.exit_code == ExitCode.CRASH and "batch_size" not in str(got.value)


def test_packed_sequences_cross_with_each_frame_once():
    spec = env_spec((6, 5), stack=4, actions=3)
    algorithm = Impala(Impala.Config(unroll_length=4, conv=((4, 3, 2),), hidden=(4,)), spec)
    rng = np.random.default_rng(0)
    columns: dict[str, Any] = {
        column.name: rng.integers(0, 2, (3, *column.shape)).astype(column.dtype)
        for column in algorithm.schema().columns
    }
    frames = rng.integers(0, 256, (3, 8, 6, 5)).astype(np.uint8)
    items = Items(np.arange(3), np.ones(3), columns, frames, np.full(3, 8, np.int32))
    device = Device()
    moved = device.transfer(algorithm.pack(items))
    wanted = algorithm.collate(items)
    assert isinstance(moved, PackedSequences) and len(device.copies) == 1
    assert (moved.frames.nbytes, wanted.observation.nbytes) == (3 * 8 * 30, 3 * 5 * 4 * 30)
    frames[:] = 0
    made = expanded(moved)
    assert torch.equal(made.observation, wanted.observation)
    assert torch.equal(made.last_reward, wanted.last_reward)
    assert made.episode_edges == wanted.episode_edges


def test_batch_stays_as_it_is_on_the_cpu():
    batch = {"action": np.zeros(3)}
    assert transfer_to(torch.device("cpu"))(batch) is batch
