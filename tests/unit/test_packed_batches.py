"""Packed batches: expanded on the device, they are what `collate` makes on the CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from apex.acting.exploration import Progress
from apex.algos.apex_dqn import ApexDQN
from apex.algos.base import Algorithm
from apex.algos.batches import (
    PackedSequences,
    PackedTransitions,
    Sequences,
    Transitions,
    expanded,
    map_tensors,
    stacked_rows,
)
from apex.algos.impala import Impala
from apex.algos.r2d2 import R2D2
from apex.algos.sequence_batches import stacked
from apex.data.chunks import Items
from apex.envs.spec import EnvSpec
from apex.errors import CorruptItemsError
from tests.support.builders import env_spec

torch.set_num_threads(1)

SPECS = {
    "four gray frames": env_spec((12, 11), stack=4, actions=5),
    "one gray frame": env_spec((12, 11), stack=1, actions=5),
    "two RGB frames": env_spec((12, 11, 3), stack=2, actions=5),
}
VECTORS = env_spec((3,), "float32", actions=5)
CONV = ((4, 3, 2),)


def random_items(algorithm: Algorithm, count: int, rng: np.random.Generator) -> Items:
    """Items of an algorithm with random numbers; frames have all their rows."""
    schema, columns = algorithm.schema(), {}
    for column in schema.columns:
        shape = (count, *column.shape)
        if column.dtype == "float32":
            columns[column.name] = rng.normal(size=shape).astype(np.float32)
        else:
            columns[column.name] = rng.integers(0, 2, shape).astype(column.dtype)
    frames = counts = None
    if schema.frames is not None:
        depth = schema.frames.max_frames
        frames = rng.integers(0, 256, (count, depth, *schema.frames.shape)).astype(np.uint8)
        counts = np.full(count, depth, np.int32)
    probabilities = rng.uniform(0.001, 0.1, count)
    return Items(np.arange(count), probabilities, columns, frames, counts)


def fields_of(batch: Any) -> dict[str, Any]:
    """The fields of a batch by name, extras included."""
    fields = batch._asdict()
    return {**fields.pop("extras"), **fields}


def assert_equal(made: Any, wanted: Any) -> None:
    """Check that two batches have equal fields, dtypes, shapes and values."""
    assert type(made) is type(wanted)
    made, wanted = fields_of(made), fields_of(wanted)
    assert made.keys() == wanted.keys()
    for name, value in wanted.items():
        if isinstance(value, torch.Tensor):
            assert (made[name].dtype, made[name].shape) == (value.dtype, value.shape), name
            assert torch.equal(made[name], value), name
        else:
            assert made[name] == value, name


def dqn(spec: EnvSpec, n_step: int = 3) -> ApexDQN:
    return ApexDQN(ApexDQN.Config(n_step=n_step, conv=CONV, stream_hidden=(8,)), spec)


def impala(spec: EnvSpec) -> Impala:
    return Impala(Impala.Config(unroll_length=8, lstm=2, conv=CONV, hidden=(4,)), spec)


def r2d2(spec: EnvSpec) -> R2D2:
    layout = {"burn_in": 3, "unroll_length": 4, "overlap": 2, "n_step": 2}
    return R2D2(R2D2.Config(lstm=2, conv=CONV, hidden=(4,), stream_hidden=(4,), **layout), spec)


def test_bootstrap_stack_begins_at_the_last_frames_of_a_truncated_transition() -> None:
    frames = torch.arange(10, dtype=torch.uint8).reshape(2, 5, 1, 1)
    columns = {
        name: torch.zeros(2) for name in ("action", "n_step_return", "discount", "probability")
    }
    batch = PackedTransitions(frames, torch.tensor([3, 1]), 2, columns).expanded()
    assert batch.observation.flatten(1).tolist() == [[0, 1], [5, 6]]
    assert batch.next_observation.flatten(1).tolist() == [[3, 4], [6, 7]]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("ends", ["none", "terminated", "truncated", "both"])
@pytest.mark.parametrize("n_step", [1, 3])
def test_expanded_transitions_equal_collated_ones(spec: str, ends: str, n_step: int) -> None:
    rng = np.random.default_rng(len(spec) + n_step)
    algorithm = dqn(SPECS[spec], n_step)
    items = random_items(algorithm, 9, rng)
    short = rng.integers(1, n_step + 1, 4) + SPECS[spec].frame_stack
    if ends in ("terminated", "both"):
        items.frame_count[:4], items.columns["discount"][:4] = short, 0.0
    if ends in ("truncated", "both"):
        items.frame_count[4:8], items.columns["discount"][4:8] = short, 0.97
    packed, wanted = algorithm.pack(items), algorithm.collate(items)
    assert isinstance(packed, PackedTransitions) and isinstance(wanted, Transitions)
    assert packed.frames.data_ptr() == items.frames.ctypes.data  # no copy on the host
    assert_equal(packed.expanded(), wanted)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("make", [impala, r2d2])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_expanded_sequences_equal_collated_ones(spec: str, make: Any, share: float) -> None:
    algorithm, rng = make(SPECS[spec]), np.random.default_rng(3)
    items = random_items(algorithm, 6, rng)
    first = items.columns["is_first"]
    first[:] = rng.random(first.shape) < share
    packed, wanted = algorithm.pack(items), algorithm.collate(items)
    assert isinstance(packed, PackedSequences) and isinstance(wanted, Sequences)
    assert packed.frames.data_ptr() == items.frames.ctypes.data
    assert_equal(packed.expanded(), wanted)


def test_stacks_on_the_device_equal_those_of_numpy_over_random_episodes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        count, length, depth = (int(n) for n in rng.integers(1, 7, 3))
        shape = (count, depth - 1 + length, *rng.integers(1, 4, rng.integers(2, 4)))
        frames = rng.integers(1, 256, shape).astype(np.uint8)
        is_first = rng.random((count, length)) < rng.random()
        made = stacked_rows(torch.from_numpy(frames), torch.from_numpy(is_first))
        assert made.is_contiguous() and made.dtype == torch.uint8
        np.testing.assert_array_equal(made.numpy(), stacked(frames, is_first, depth))


def test_stacks_on_the_device_are_zero_before_an_episode_begins() -> None:
    values = torch.arange(1, 7, dtype=torch.uint8).reshape(1, 6, 1, 1)
    stacks = stacked_rows(values, torch.tensor([[False, True, False, False]]))
    assert stacks[0, :, :, 0, 0].tolist() == [[1, 2, 3], [0, 0, 4], [0, 4, 5], [4, 5, 6]]


@pytest.mark.parametrize("make", [dqn, impala])
def test_vectors_are_not_packed(make: Any) -> None:
    algorithm = make(VECTORS)
    items = random_items(algorithm, 4, np.random.default_rng(0))
    batch = algorithm.pack(items)
    assert isinstance(batch, (Transitions, Sequences)) and expanded(batch) is batch
    assert_equal(batch, algorithm.collate(items))


class OwnTransitions(ApexDQN):
    def collate(self, items: Items) -> Any:
        return super().collate(items)._replace(probability=torch.full((len(items),), 7.0))


class OwnSequences(Impala):
    def collate(self, items: Items) -> Any:
        return super().collate(items)._replace(probability=torch.full((len(items),), 7.0))


@pytest.mark.parametrize(("kind", "like"), [(OwnTransitions, dqn), (OwnSequences, impala)])
def test_own_collate_decides_what_crosses_to_the_device(kind: Any, like: Any) -> None:
    algorithm = kind(like(SPECS["one gray frame"]).config, SPECS["one gray frame"])
    items = random_items(algorithm, 3, np.random.default_rng(0))
    batch = algorithm.pack(items)
    assert isinstance(batch, (Transitions, Sequences))
    assert batch.probability.tolist() == [7.0, 7.0, 7.0]


@pytest.mark.parametrize("make", [dqn, impala])
def test_corrupt_items_are_reported_when_packed(make: Any) -> None:
    algorithm = make(SPECS["two RGB frames"])
    items = random_items(algorithm, 3, np.random.default_rng(0))
    items.columns["action"][1] = 5
    items.frame_count[2] = 2
    with pytest.raises(CorruptItemsError) as error:
        algorithm.pack(items)
    assert error.value.item_ids == [1, 2]


@pytest.mark.parametrize("make", [dqn, impala, r2d2])
def test_update_from_a_packed_batch_equals_one_from_a_collated_batch(make: Any) -> None:
    algorithm = make(SPECS["four gray frames"])
    items = random_items(algorithm, 5, np.random.default_rng(1))
    results = []
    for make_batch in (algorithm.pack, algorithm.collate):
        torch.manual_seed(0)
        learner = algorithm.learner(torch.device("cpu"))
        updates = [learner.learn(make_batch(items), Progress(step, 0)) for step in range(3)]
        parameters = [parameter.detach().clone() for parameter in learner.network.parameters()]
        results.append([updates[-1].priorities, *updates[-1].metrics.values(), *parameters])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_map_tensors_keeps_a_packed_batch_packed() -> None:
    algorithm = impala(SPECS["two RGB frames"])
    packed = algorithm.pack(random_items(algorithm, 2, np.random.default_rng(0)))
    copy = map_tensors(packed, torch.clone)
    assert isinstance(copy, PackedSequences)
    assert copy.columns["episode_edges"] == packed.columns["episode_edges"]
    assert_equal(copy.expanded(), packed.expanded())
