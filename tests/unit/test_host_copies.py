"""Copies of results and parameters on the host."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from apex.daemons.learner.host_copies import HostCopies, ParameterEncoder, read_numbers
from apex.networks import parameters


def test_copy_has_the_values_of_when_it_was_made() -> None:
    copies, priorities = HostCopies(torch.device("cpu"), unread=2), torch.tensor([0.5, 2.0])
    first = copies.copy(priorities)
    priorities.copy_(torch.tensor([7.0, 8.0]))  # as the next replay of a graph does
    second = copies.copy(priorities)
    assert first.read().tolist() == [0.5, 2.0] and second.read().tolist() == [7.0, 8.0]
    assert first.read().dtype == "float64"


def test_float64_priorities_are_copied_too() -> None:
    priorities = torch.tensor([1.0], dtype=torch.float64)
    copy = HostCopies(torch.device("cpu"), unread=1).copy(priorities)
    priorities.fill_(3.0)
    assert copy.read().tolist() == [1.0]


def test_memory_of_copies_is_used_in_turn_and_grows_with_the_batch() -> None:
    made: list[torch.Tensor] = []

    def allocate(shape: Sequence[int]) -> torch.Tensor:
        made.append(torch.empty(tuple(shape), dtype=torch.float64))
        return made[-1]

    copies, seen = HostCopies(torch.device("cpu"), unread=2, allocate=allocate), []
    for number in range(6):
        dtype = torch.bfloat16 if number % 2 else torch.float32  # NumPy has no bfloat16
        seen.append(copies.copy(torch.full((3,), float(number), dtype=dtype)))
        if number:
            assert seen[number - 1].read().tolist() == [number - 1.0] * 3
    assert len(made) == 2
    assert copies.copy(torch.ones(5)).read().tolist() == [1.0] * 5
    assert [memory.shape[0] for memory in made] == [3, 3, 5]


def test_numbers_of_metrics_are_read_at_once() -> None:
    metrics = {"loss": torch.tensor(0.5), "items": torch.tensor(3, dtype=torch.int64)}
    assert read_numbers(metrics) == {"loss": 0.5, "items": 3.0}
    assert read_numbers({}) == {}


@pytest.mark.parametrize("threaded", [False, True])
def test_parameters_are_encoded_as_they_were_when_that_began(threaded: bool) -> None:
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64))
    encoder, futures, expected = ParameterEncoder(network, threaded=threaded), [], []
    for step in range(6):  # more than there are copies
        expected.append(parameters.encode(network))
        futures.append(encoder.encode())
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(step + 1.0)
    assert [future.result(10.0) for future in futures] == expected
    assert len(set(expected)) == 6
