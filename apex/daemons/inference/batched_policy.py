"""A policy that decides for batches of several agents; on a GPU, up to two at a time."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.algos.batches import map_tensors
from apex.algos.noise import resample_noise
from apex.algos.policy import InputTensors, Policy
from apex.daemons.inference.cuda_stream import CudaStream, Mark, Outputs, Stream
from apex.data.observations import map_arrays
from apex.data.schema import Array

log = logging.getLogger("apex.inference")

MAX_IN_FLIGHT = 2
"""Batches begun and not finished: the device computes one while the host prepares the next."""


class Ticket(Protocol):
    """A batch that has been begun. Finish tickets in the order of their beginning."""

    def done(self) -> bool:
        """Whether `finish` would not wait."""

    def finish(self) -> Decision:
        """Wait for the device, and decide; called once."""


class BatchedPolicy(Protocol):
    """Decides for batches of several agents' environments."""

    def begin(self, parts: Sequence[Inputs], exploration: Exploration | None) -> Ticket:
        """Begin to decide. At most `MAX_IN_FLIGHT` tickets may be unfinished.

        Args:
            parts: each agent's inputs, read before this returns.
            exploration: for all environments together; None: act greedily.
        """

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Load published parameters, for the batches that begin afterwards."""


def batched(policy: Policy, max_batch: int, stream: Stream | None = None) -> BatchedPolicy:
    """Make a policy decide for batches of at most `max_batch` environments.

    Policies that define `compute` and `decide` compute in a stream, if there is one; others, and
    all on a CPU, decide when a batch begins.

    Args:
        policy: on its device.
        max_batch: environments in the largest batch.
        stream: None: a stream of its own on a CUDA device, no stream on another.
    """
    if stream is None and policy.device.type == "cuda":
        stream = CudaStream(policy.device)
    if stream is None or not policy.decides_later:
        return ImmediatePolicy(policy)
    return StreamedPolicy(policy, max_batch, stream)


class Decided(NamedTuple):
    """The ticket of a batch that was decided at once."""

    decision: Decision

    def done(self) -> bool:
        """True."""
        return True

    def finish(self) -> Decision:
        """The decision."""
        return self.decision


class ImmediatePolicy:
    """Decides when a batch begins."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    def begin(self, parts: Sequence[Inputs], exploration: Exploration | None) -> Decided:
        """Decide."""
        return Decided(self._policy.act(Inputs.joined(parts), exploration))

    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Load published parameters."""
        self._policy.load(parameters)


def batch_sizes(max_batch: int) -> list[int]:
    """The sizes that batches are padded to: the powers of two below `max_batch`, and itself."""
    powers = [2**k for k in range(max_batch.bit_length()) if 2**k < max_batch]
    return [*powers, max_batch]


class Slot:
    """Host memory of one batch: its inputs, and its outputs.

    Args:
        stream: allocates the memory.
        like: inputs of some environments, for shapes and dtypes.
        rows: environments in the largest batch.
    """

    def __init__(self, stream: Stream, like: Inputs, rows: int) -> None:
        self._stream, self._rows = stream, rows
        observations, *rest = like
        self.inputs = InputTensors(
            map_arrays(self._tensor, observations), *(self._tensor(array) for array in rest)
        )
        seen, *others = self.inputs
        self._arrays = Inputs(
            map_arrays(Tensor.numpy, seen), *(tensor.numpy() for tensor in others)
        )
        self._outputs: dict[str, Tensor] = {}

    def _tensor(self, like: Array) -> Tensor:
        """Memory for as many rows as the largest batch has."""
        dtype = torch.from_numpy(np.empty(0, like.dtype)).dtype
        return self._stream.host_tensor((self._rows, *like.shape[1:]), dtype)

    def write(self, parts: Sequence[Inputs]) -> Inputs:
        """Write the inputs of a batch; returns them, the observations without a copy."""
        begin = 0
        for part in parts:
            end = begin + part.num_envs
            for array, rows in zip(_leaves(self._arrays), _leaves(part)):
                array[begin:end] = rows
            begin = end
        observations, *rest = self._arrays
        return Inputs(
            map_arrays(lambda array: array[:begin], observations),
            *(array[:begin].copy() for array in rest),
        )

    def fetch(self, outputs: Outputs, count: int) -> None:
        """Begin to copy the outputs of the first `count` rows from the device."""
        for name, output in outputs.items():
            if name not in self._outputs:
                shape = (self._rows, *output.shape[1:])
                self._outputs[name] = self._stream.host_tensor(shape, output.dtype)
            self._outputs[name][:count].copy_(output[:count], non_blocking=True)

    def outputs(self, count: int) -> dict[str, Array]:
        """A copy of the fetched outputs."""
        return {name: tensor[:count].numpy().copy() for name, tensor in self._outputs.items()}


def _leaves(inputs: Inputs | InputTensors) -> list[Any]:
    """The arrays or tensors of inputs; those of the observation by the names' order."""
    observations, *rest = inputs
    first = observations.values() if isinstance(observations, dict) else [observations]
    return [*first, *rest]


class StreamedPolicy:
    """Computes batches in a stream of the device, padded to few sizes, each recorded once.

    Inputs and outputs are in host memory that is allocated once. When a size cannot be recorded,
    the log has the reason, and the batches are computed without recordings from then on.

    Args:
        policy: defines `compute` and `decide`.
        max_batch: environments in the largest batch.
        stream: of the policy's device.
    """

    def __init__(self, policy: Policy, max_batch: int, stream: Stream) -> None:
        policy.loads_in_place = True  # recordings read the tensors that they were made with
        self._policy, self._stream = policy, stream
        self._sizes = batch_sizes(max_batch)
        self._free: list[Slot] = []
        self._slots = 0
        self._inputs: InputTensors | None = None
        """The batch's inputs on the device; rows beyond the batch hold an earlier one's."""
        self._replays: dict[int, Callable[[], Outputs]] = {}
        self._records = True
        # Not the default generator: a failed capture leaves that one unusable in some versions of
        # torch (RuntimeError: Offset increment outside graph capture).
        self._generator = torch.Generator(policy.device)
        self._generator.seed()

    @torch.inference_mode()
    def load(self, parameters: Mapping[str, Tensor]) -> None:
        """Load published parameters, after the batches in flight."""
        with self._stream.context():
            self._policy.load(parameters)

    @torch.inference_mode()
    def begin(self, parts: Sequence[Inputs], exploration: Exploration | None) -> InFlight:
        """Copy the inputs to the device, and begin to compute the outputs and copy them back."""
        with self._stream.context():
            slot = self._take_slot(parts[0])
            inputs = slot.write(parts)
            count = inputs.num_envs
            noisy = exploration is not None
            self._draw_noise(noisy)
            assert self._inputs is not None
            for tensor, source in zip(_leaves(self._inputs), _leaves(slot.inputs)):
                tensor[:count].copy_(source[:count], non_blocking=True)
            slot.fetch(self._compute(count, noisy=noisy), count)
            mark = self._stream.mark()
        return InFlight(self._policy, slot, inputs, exploration, mark, self._free.append)

    def _take_slot(self, like: Inputs) -> Slot:
        if self._free:
            return self._free.pop()
        assert self._slots < MAX_IN_FLIGHT, "more batches in flight than MAX_IN_FLIGHT"
        self._slots += 1
        slot = Slot(self._stream, like, self._sizes[-1])
        if self._inputs is None:
            device = self._policy.device
            self._inputs = map_tensors(
                slot.inputs, lambda t: torch.zeros(t.shape, dtype=t.dtype, device=device)
            )
        return slot

    def _compute(self, count: int, *, noisy: bool) -> Outputs:
        """Outputs of at least `count` rows, from the recording of the smallest size that holds
        them."""
        size = next(size for size in self._sizes if size >= count)
        if self._records and size not in self._replays:
            self._record(size, noisy=noisy)
        return self._replays[size]() if self._records else self._call(count)

    def _draw_noise(self, noisy: bool) -> None:
        resample_noise(self._policy.network, noisy=noisy, generator=self._generator)

    def _call(self, rows: int) -> Outputs:
        assert self._inputs is not None
        return self._policy.compute(map_tensors(self._inputs, lambda tensor: tensor[:rows]))

    def _record(self, size: int, *, noisy: bool) -> None:
        """Record a size; it waits for the device, once for each size."""
        try:
            replay = self._stream.record(partial(self._call, size))
            self._draw_noise(noisy)
            _check_replay(replay(), self._call(size))
            self._replays[size] = replay
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            log.warning(
                "batches of %d cannot be a CUDA graph: %s; computing without graphs", size, error
            )
            self._records = False
            self._replays.clear()


def _check_replay(replayed: Outputs, called: Outputs) -> None:
    """Raise `RuntimeError` unless a replay computes what a call of the policy does."""
    for name, output in called.items():
        found, expected = replayed[name].double(), output.double()
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise RuntimeError(
                f"'{name}' of a second call differs: the policy's compute depends on more than "
                "its inputs, its parameters and noise drawn in place"
            )


class InFlight:
    """The ticket of a batch that the device computes.

    Args:
        policy: decides when the outputs are there.
        slot: has the outputs once the mark is reached.
        inputs: the batch.
        exploration: of all environments.
        mark: the end of the batch's work.
        release: called with the slot when it is free again.
    """

    def __init__(
        self,
        policy: Policy,
        slot: Slot,
        inputs: Inputs,
        exploration: Exploration | None,
        mark: Mark,
        release: Callable[[Slot], None],
    ) -> None:
        self._policy, self._slot, self._inputs = policy, slot, inputs
        self._exploration, self._mark, self._release = exploration, mark, release

    def done(self) -> bool:
        """Whether the outputs are on the host."""
        return self._mark.query()

    @torch.inference_mode()
    def finish(self) -> Decision:
        """Wait for the outputs, and decide."""
        self._mark.synchronize()
        outputs = self._slot.outputs(self._inputs.num_envs)
        decision = self._policy.decide(outputs, self._inputs, self._exploration)
        self._release(self._slot)
        return decision
