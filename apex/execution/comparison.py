"""Compare a replayed update with the same update run by Python."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apex.algos.base import Learner, Update

PLAIN = (bool, int, float, complex, str, type(None))
CONTAINERS = (list, tuple, dict, set)
OWN_STATE = ("torch", "numpy", "msgspec")
"""Packages whose objects are skipped: a user's update changes no Python values in them."""
DEPTH = 3
"""Levels of nested objects that are searched."""


class LearnerState:
    """A copy of all that an update changes on the device, random generators included.

    Args:
        learner: whose state to copy.
    """

    def __init__(self, learner: Learner) -> None:
        self._device = learner.device
        self._tensors = learner.state_tensors()
        self.copies = {
            name: [tensor.detach().clone() for tensor in tensors]
            for name, tensors in self._tensors.items()
        }
        """Copies of the learner's tensors by kind."""
        self._rng = torch.get_rng_state()
        if self._device.type == "cuda":
            self._cuda_rng = torch.cuda.get_rng_state(self._device)

    @torch.no_grad()
    def restore(self) -> None:
        """Write the copies back."""
        for name, tensors in self._tensors.items():
            for tensor, copy in zip(tensors, self.copies[name]):
                tensor.copy_(copy)
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
    """What differs between a replayed update and one that Python ran, in words; None: nothing.

    Args:
        replayed, run: the results, and the states after them.
        before: the state before both.
        tolerance: largest relative difference that is rounding. Of states the changes are
            compared, since one update changes little, and each kind of tensors by itself.
    """
    (update, state), (expected, expected_state) = replayed, run
    if not equal(update.priorities, expected.priorities, tolerance):
        return "the priorities"
    for name, value in expected.metrics.items():
        if not equal(update.metrics[name], value, tolerance):
            return f"the metric '{name}'"
    for name, copies in before.copies.items():
        found, right = (_changes(copies, s.copies[name]) for s in (state, expected_state))
        if not equal(found, right, tolerance):
            return f"the {name}"
    return None


def _changes(before: Sequence[Tensor], after: Sequence[Tensor]) -> Tensor:
    """The changes of some tensors, in one row."""
    changes = [(new.double() - old.double()).flatten() for old, new in zip(before, after)]
    return torch.cat(changes) if changes else torch.zeros(0)


def equal(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether the distance of two tensors is small beside the second one's norm.

    Numbers that are not finite must be at the same places.
    """
    found, expected = found.double(), expected.double()
    finite = expected.isfinite()
    if not torch.equal(found.isfinite(), finite):
        return False
    found, expected = found[finite], expected[finite]
    return bool((found - expected).norm() <= tolerance * expected.norm())


def host_values(learner: Learner) -> dict[str, Any]:
    """The plain Python values of a learner and of what it holds, by path.

    An update that changes one of them, such as a counter, cannot be recorded: a replay would go on
    with the value that it had.
    """
    return dict(_values(type(learner).__name__, learner, DEPTH, {id(learner)}))


def _values(name: str, owner: object, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    parts = owner.items() if isinstance(owner, dict) else vars(owner).items()
    for key, value in [*parts, *_submodules(owner)]:
        path = f"{name}.{key}"
        if isinstance(value, PLAIN):
            yield path, value
        elif isinstance(value, CONTAINERS) and _is_plain(value):
            yield path, repr(value)
        elif depth and id(value) not in seen and _may_hold_values(value):
            seen.add(id(value))
            yield from _values(path, value, depth - 1, seen)


def _submodules(owner: object) -> Iterator[tuple[str, object]]:
    """All modules of a network at once, however deep they are."""
    if isinstance(owner, nn.Module):
        yield from ((name, module) for name, module in owner.named_modules() if name)


def _is_plain(values: Any) -> bool:
    items = values.values() if isinstance(values, dict) else values
    return all(isinstance(item, PLAIN) for item in items)


def _may_hold_values(value: object) -> bool:
    if isinstance(value, (dict, nn.Module)):
        return True
    return hasattr(value, "__dict__") and not (
        isinstance(value, type) or type(value).__module__.partition(".")[0] in OWN_STATE
    )


def changed_value(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """A Python value that has changed, in words; None: none has."""
    for path, value in after.items():
        was = before.get(path)
        if was is not value and was != value:
            return f"an update changes {path} in Python, from {was!r} to {value!r}"
    return None
