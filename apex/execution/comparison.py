"""Compare a replayed update with the same update run by Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from apex.algos.base import Algorithm, Learner, Update

HOST_VALUES = (bool, int, float, complex, str, type(None))


class LearnerState:
    """A copy of all that an update changes on the device, random generators included.

    Args:
        learner: whose state to copy.
    """

    def __init__(self, learner: Learner) -> None:
        self._device = learner.device
        self._tensors = {id(tensor): tensor for tensor in learner.state_tensors()}
        self.copies = {key: tensor.detach().clone() for key, tensor in self._tensors.items()}
        """A copy of each tensor by the tensor's id."""
        self._rng = torch.get_rng_state()
        if self._device.type == "cuda":
            self._cuda_rng = torch.cuda.get_rng_state(self._device)

    @torch.no_grad()
    def restore(self) -> None:
        """Write the copies back."""
        for key, tensor in self._tensors.items():
            tensor.copy_(self.copies[key])
        torch.set_rng_state(self._rng)
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(self._cuda_rng, self._device)


def copied(update: Update) -> Update:
    """A copy of an update whose tensors the next replay overwrites."""
    metrics = {name: value.clone() for name, value in update.metrics.items()}
    return Update(update.priorities.clone(), metrics)


def difference(
    replayed: tuple[Update, LearnerState],
    run: tuple[Update, LearnerState],
    before: LearnerState,
    tolerance: float,
) -> str | None:
    """What differs between a replayed update and one that Python ran; None: nothing.

    Args:
        replayed, run: the results, and the states after them.
        before: the state before both.
        tolerance: largest relative difference that is rounding. States are compared by how they
            changed, since one update changes little.
    """
    (update, state), (expected, expected_state) = replayed, run
    if not _equal(update.priorities, expected.priorities, tolerance):
        return "the priorities differ"
    for name, value in expected.metrics.items():
        if not _equal(update.metrics[name], value, tolerance):
            return f"the metric '{name}' differs"
    changes = [
        torch.cat([(s.copies[k] - copy).double().flatten() for k, copy in before.copies.items()])
        for s in (state, expected_state)
    ]
    return None if _equal(changes[0], changes[1], tolerance) else "the parameters differ"


def _equal(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    found, expected = found.double(), expected.double()
    if tolerance == 0.0:
        return bool(torch.equal(found.nan_to_num(), expected.nan_to_num()))
    apart = (found - expected).nan_to_num().norm()
    return bool(apart <= tolerance * expected.nan_to_num().norm() + 1e-12)


def host_values(learner: Learner) -> dict[tuple[int, str], Any]:
    """The plain Python values of a learner, its algorithm and its networks.

    The keys are the number of the owner, and the names of its type and of the value.

    An update that changes one of them, such as a counter, cannot be recorded: a replay would go on
    with the value that it had.
    """
    return {
        (number, f"{type(owner).__name__}.{name}"): value
        for number, owner in enumerate(_owners(learner))
        for name, value in vars(owner).items()
        if isinstance(value, HOST_VALUES)
    }


def _owners(learner: Learner) -> Iterator[object]:
    yield learner
    yield from (part for part in vars(learner).values() if isinstance(part, Algorithm))
    for network in learner.modules().values():
        yield from network.modules()


def changed_value(
    before: Mapping[tuple[int, str], Any], after: Mapping[tuple[int, str], Any]
) -> str | None:
    """A Python value that has changed, in words; None: none has."""
    for key, value in after.items():
        was = before.get(key)
        if was is not value and was != value:
            return f"an update changes {key[1]} in Python, from {was!r} to {value!r}"
    return None
