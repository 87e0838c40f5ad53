"""Batches in memory that stays in place, as a recorded graph reads them."""

from __future__ import annotations

from collections.abc import Hashable
from itertools import pairwise
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from apex.algos.batches import Padded, map_tensors

ALIGNMENT = 16
"""Bytes; a multiple of every dtype's size."""


class Form(NamedTuple):
    """What batches must share to use the same graph."""

    structure: Hashable
    """Nesting, names, dtypes, shapes without the first dimension, values that no tensor has, and
    which tensors overlap in memory."""
    rows: int | None
    """Size of the first dimension of every tensor; None: they differ."""


def form_of(batch: Any) -> Form:
    """The form of a nested batch (`map_tensors`)."""
    tensors = tensors_of(batch)
    sizes = {tensor.shape[0] if tensor.ndim else -1 for tensor in tensors}
    rows = sizes.pop() if len(sizes) == 1 else -1
    structure = _structure(batch, 1 if rows >= 0 else 0), _overlaps(tensors)
    return Form(structure, rows if rows >= 0 else None)


def _overlaps(tensors: list[Tensor]) -> Hashable:
    """Tensors that share bytes with another one, with their places relative to the first."""
    found = []
    for members in _by_storage(tensors).values():
        ranges = sorted((_first_byte(tensors[k]), _range(tensors[k])[1], k) for k in members)
        if any(begin < end for (_, end, _), (begin, _, _) in pairwise(ranges)):
            first = min(_first_byte(tensors[k]) for k in members)
            found.append(
                tuple((k, _first_byte(tensors[k]) - first, tensors[k].stride()) for k in members)
            )
    return tuple(found)


def _structure(part: Any, first: int) -> Hashable:
    if isinstance(part, Tensor):
        return part.dtype, part.shape[first:]
    if isinstance(part, (dict, MappingProxyType)):
        return tuple((name, _structure(value, first)) for name, value in part.items())
    if isinstance(part, tuple):
        return type(part), *(_structure(value, first) for value in part)
    return part if isinstance(part, Hashable) else repr(part)


def tensors_of(batch: Any) -> list[Tensor]:
    """The tensors of a nested batch, in order."""
    found: list[Tensor] = []

    def add(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    map_tensors(batch, add)
    return found


def without_episode_edges(batch: Any) -> Any:
    """Set `episode_edges` to None unless empty: they differ from batch to batch."""
    named = isinstance(batch, tuple) and hasattr(batch, "_asdict")
    if not named and not isinstance(batch, dict):
        return batch
    items = (batch._asdict() if named else batch).items()
    parts = {name: without_episode_edges(part) for name, part in items}
    if parts.get("episode_edges"):
        parts["episode_edges"] = None
    return type(batch)(**parts) if named else parts


class _Span(NamedTuple):
    """A range of a storage's bytes that some tensors are views of."""

    begin: int
    end: int
    members: tuple[int, ...]
    """Positions of the tensors in the batch."""


class StaticBatch:
    """A batch at fixed addresses. `fill` copies other batches of its form into it.

    Tensors that are views of one storage, such as overlapping frame stacks or all tensors of a
    batch that was copied to the device at once, are copied at once.

    Args:
        example: a batch of the form.
        rows: size of the first dimension.
    """

    def __init__(self, example: Any, rows: int) -> None:
        tensors = tensors_of(example)
        self._rows = rows
        self._layout, spans = _layout(tensors)
        self._spans = [
            (torch.empty(_padded(span.end - span.begin), dtype=torch.uint8, device=device), span)
            for span, device in ((span, tensors[span.members[0]].device) for span in spans)
        ]
        places: dict[int, Tensor] = {}
        for memory, span in self._spans:
            for member in span.members:
                places[member] = _view(memory, tensors[member], span.begin)
        self._tensors = [
            places[k] if k in places else torch.empty_like(t) for k, t in enumerate(tensors)
        ]
        self._weights = torch.ones(rows, device=tensors[0].device)
        self._weighted = rows
        remaining = iter(self._tensors)
        whole = map_tensors(example, lambda _: next(remaining))
        self.batch = Padded(whole, self._weights)
        """The batch and its item weights; always the same tensors."""

    def fill(self, batch: Any, rows: int) -> None:
        """Copy a batch; if it has fewer rows, its first one fills the rest with weight 0."""
        tensors = tensors_of(batch)
        if rows == self._rows and (found := _layout(tensors))[0] == self._layout:
            for (memory, _), span in zip(self._spans, found[1]):
                source = tensors[span.members[0]]
                memory[: span.end - span.begin].copy_(_bytes(source, span), non_blocking=True)
        else:
            for own, tensor in zip(self._tensors, tensors):
                own[:rows].copy_(tensor, non_blocking=True)
                own[rows:].copy_(tensor[:1].expand_as(own[rows:]), non_blocking=True)
        if rows != self._weighted:
            self._weights.fill_(1.0)
            self._weights[rows:].fill_(0.0)
            self._weighted = rows


def _layout(tensors: list[Tensor]) -> tuple[Hashable, list[_Span]]:
    """Where the tensors are in their storages, comparable between batches, and the spans.

    A tensor without elements is in no span. Tensors that leave more than half of their storage's
    span unused have a span each.
    """
    spans: list[_Span] = []
    for members in _by_storage(tensors).values():
        ranges = [_range(tensors[k]) for k in members]
        whole = _Span(min(b for b, _ in ranges), max(e for _, e in ranges), tuple(members))
        if 2 * sum(tensors[k].nbytes for k in members) >= whole.end - whole.begin:
            spans.append(whole)
        else:
            spans += [_Span(*limits, (k,)) for k, limits in zip(members, ranges)]
    places = tuple(
        (k, tensors[k].shape, tensors[k].stride(), _first_byte(tensors[k]) - span.begin)
        for span in spans
        for k in span.members
    )
    return (places, tuple(span.members for span in spans)), spans


def _by_storage(tensors: list[Tensor]) -> dict[int, list[int]]:
    """Positions of the tensors that have elements, by the address of their storage."""
    found: dict[int, list[int]] = {}
    for k, tensor in enumerate(tensors):
        if tensor.numel():
            found.setdefault(tensor.untyped_storage().data_ptr(), []).append(k)
    return found


def _range(tensor: Tensor) -> tuple[int, int]:
    """First byte of a tensor in its storage, aligned downwards, and the byte after its last."""
    size = tensor.element_size()
    extent = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.stride())) + 1
    begin = _first_byte(tensor)
    return int(begin - begin % ALIGNMENT), int(begin + extent * size)


def _first_byte(tensor: Tensor) -> int:
    return int(tensor.storage_offset() * tensor.element_size())


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _view(memory: Tensor, like: Tensor, begin: int) -> Tensor:
    """View of `memory` like `like`; byte `begin` of its storage is byte 0 of `memory`."""
    offset = like.storage_offset() - begin // like.element_size()
    return memory.view(like.dtype).as_strided(like.shape, like.stride(), offset)


def _bytes(tensor: Tensor, span: _Span) -> Tensor:
    """The bytes of a span of a tensor's storage."""
    flat = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    size = (span.end - span.begin,)
    return flat.set_(tensor.untyped_storage(), span.begin, size, (1,))
