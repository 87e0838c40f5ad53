"""Batches in memory that stays in place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from apex.algos.batches import Sequences, Transitions
from apex.execution.static_batches import (
    StaticBatch,
    form_of,
    tensors_of,
    without_episode_edges,
)


def transitions(first: int, size: int = 2, *, apart: bool = False) -> Transitions:
    """Transitions of frames of one pixel, numbered from `first`; stacks of 4, n = 3."""
    frames = torch.arange(first, first + 7 * size, dtype=torch.uint8).reshape(size, 7)
    after = frames[:, 3:]
    return Transitions(
        observation=frames[:, :4],
        action=torch.arange(size, dtype=torch.int32),
        n_step_return=torch.full((size,), float(first)),
        discount=torch.full((size,), 0.5),
        next_observation=after.clone() if apart else after,
        probability=torch.full((size,), 0.25),
    )


def addresses(batch: object) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors_of(batch)]


@pytest.mark.parametrize("apart", [False, True])
def test_filled_batch_has_the_values_of_the_other_at_its_own_addresses(apart: bool) -> None:
    static = StaticBatch(transitions(0, apart=apart), rows=2)
    before = addresses(static.batch)
    static.fill(transitions(20, apart=apart), rows=2)
    batch, weights = static.batch
    assert batch.observation.tolist() == [[20, 21, 22, 23], [27, 28, 29, 30]]
    assert batch.next_observation.tolist() == [[23, 24, 25, 26], [30, 31, 32, 33]]
    assert batch.n_step_return.tolist() == [20.0, 20.0] and batch.action.tolist() == [0, 1]
    assert weights.tolist() == [1.0, 1.0]
    assert addresses(static.batch) == before


def test_overlapping_stacks_are_one_piece_of_memory() -> None:
    batch = StaticBatch(transitions(0), rows=2).batch.batch
    assert batch.next_observation.data_ptr() == batch.observation.data_ptr() + 3


def test_batches_with_and_without_overlapping_stacks_have_different_forms() -> None:
    """A stack that is not a view may differ from the frames that it would overlap with."""
    views, copies = form_of(transitions(0)), form_of(transitions(0, apart=True))
    assert views.structure != copies.structure
    assert form_of(transitions(9, size=5)).structure == views.structure
    assert form_of(transitions(9, size=5, apart=True)).structure == copies.structure


def test_short_batch_repeats_its_first_item_with_weight_0() -> None:
    static = StaticBatch(transitions(0, size=3), rows=3)
    static.fill(transitions(40, size=2), rows=2)
    batch, weights = static.batch
    assert batch.observation[:, 0].tolist() == [40, 47, 40]
    assert batch.next_observation[:, 0].tolist() == [43, 50, 43]
    assert weights.tolist() == [1.0, 1.0, 0.0]
    static.fill(transitions(0, size=3), rows=3)
    assert static.batch.item_weights.tolist() == [1.0, 1.0, 1.0]


def test_small_views_of_a_large_tensor_do_not_copy_all_of_it() -> None:
    large = torch.arange(1000.0).reshape(2, 500)
    static = StaticBatch({"part": large[:, 10:12], "empty": torch.zeros(2, 0)}, rows=2)
    static.fill({"part": 2 * large[:, 10:12], "empty": torch.zeros(2, 0)}, rows=2)
    batch = static.batch.batch
    assert batch["part"].tolist() == [[20, 22], [1020, 1022]]
    assert batch["empty"].shape == (2, 0)
    one_row = StaticBatch({"part": large[:1, 10:12]}, rows=1).batch.batch["part"]
    assert one_row.untyped_storage().nbytes() == 16


def test_views_at_odd_offsets_keep_their_values() -> None:
    raw = torch.arange(64, dtype=torch.uint8)
    numbers = torch.arange(8.0)
    example = {"bytes": raw[3:11].view(2, 4), "numbers": numbers[1:5].view(2, 2)}
    static = StaticBatch(example, rows=2)
    static.fill({"bytes": raw[13:21].view(2, 4), "numbers": numbers[3:7].view(2, 2)}, rows=2)
    assert static.batch.batch["bytes"].flatten().tolist() == list(range(13, 21))
    assert static.batch.batch["numbers"].flatten().tolist() == [3, 4, 5, 6]


def test_form_has_the_shapes_without_the_number_of_items() -> None:
    two, three = form_of(transitions(0)), form_of(transitions(9, size=3))
    assert two.structure == three.structure and (two.rows, three.rows) == (2, 3)
    masked = transitions(0)._replace(action_mask=torch.ones(2, 4, dtype=torch.bool))
    assert form_of(masked).structure != two.structure
    wide = transitions(0)._replace(discount=torch.ones(2, dtype=torch.float64))
    assert form_of(wide).structure != two.structure
    assert form_of({"a": torch.ones(2), "b": torch.ones(3)}).rows is None
    assert form_of({"a": torch.ones(2), "b": torch.ones(())}).rows is None
    assert (
        form_of({"a": torch.ones(2), "n": 3}).structure
        != form_of({"a": torch.ones(2), "n": 4}).structure
    )


def sequences(episode_edges: tuple[int, ...]) -> Sequences:
    rows: Tensor = torch.zeros(2, 5)
    return Sequences(
        rows, rows, rows, rows, rows.bool(), rows.bool(), rows, rows, torch.zeros(2, 0), rows[:, 0],
        episode_edges,
    )  # fmt: skip


def test_edges_of_episodes_are_left_to_the_device_unless_there_are_none() -> None:
    edges = [without_episode_edges(sequences(edges)).episode_edges for edges in ((), (2,), (1, 3))]
    assert edges == [(), None, None]
    assert without_episode_edges({"a": 1}) == {"a": 1}
