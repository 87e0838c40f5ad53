"""Updates and decisions read no tensor value, so they never wait for the device (fake tensors)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from apex.acting.exploration import Progress
from apex.acting.normalization import Normalization
from apex.algos.base import Algorithm
from apex.algos.batches import map_tensors
from apex.algos.normalization import normalized
from apex.api import R2D2, ApexDPG, ApexDQN, Impala, InputTensors
from apex.data.chunks import Items
from apex.envs.spec import ActionBounds, EnvSpec
from examples.munchausen import Munchausen
from examples.own_network import WideDQN
from tests.support.batches import batch_of, random_sequences, random_transitions

CPU = torch.device("cpu")
VECTORS = EnvSpec("Test-v0", (3,), "float32", 0, 4)
IMAGES = EnvSpec("Test-v0", (12, 12), "uint8", 2, 4)
BOUNDS = ActionBounds("float32", (2,), (-2.0, 0.0), (2.0, 10.0))
CONTINUOUS = EnvSpec("Test-v0", (3,), "float32", 0, 0, BOUNDS)
SEVERAL = EnvSpec("Test-v0", (3,), "float32", 0, 0, ActionBounds("int64", (2,), (0, 1), (3, 2)))
CONV = {"conv": ((4, 3, 2),)}
SEQUENCES = {"burn_in": 3, "unroll_length": 5, "overlap": 2, "n_step": 2}
NORMALIZED = Normalization({"observation": (3,)}, rewards=True, discount=0.99)

CASES = {
    "apex_dqn": (ApexDQN, VECTORS, {"optimizer": "rmsprop"}),
    "apex_dqn, images, adam": (ApexDQN, IMAGES, {**CONV, "optimizer": "adam"}),
    "apex_dpg": (ApexDPG, CONTINUOUS, {}),
    "r2d2": (R2D2, VECTORS, {**SEQUENCES, "lstm": 4}),
    "r2d2, images": (R2D2, IMAGES, {**SEQUENCES, **CONV, "lstm": 4}),
    "impala": (Impala, VECTORS, {"unroll_length": 9}),
    "impala, lstm": (Impala, VECTORS, {"unroll_length": 9, "lstm": 4}),
    "impala, several": (Impala, SEVERAL, {"unroll_length": 9}),
    "impala, several, lstm": (Impala, SEVERAL, {"unroll_length": 9, "lstm": 4}),
    "munchausen": (Munchausen, VECTORS, {}),
    "own network": (WideDQN, VECTORS, {}),
    "apex_dqn, normalized": (normalized(ApexDQN, NORMALIZED), VECTORS, {}),
    "apex_dpg, normalized": (normalized(ApexDPG, NORMALIZED), CONTINUOUS, {}),
    "r2d2, normalized": (normalized(R2D2, NORMALIZED), VECTORS, {**SEQUENCES, "lstm": 4}),
}


def numbers_of(algorithm: Algorithm) -> dict[str, Any]:
    """A random batch of the algorithm, as arrays."""
    if isinstance(algorithm, (R2D2, Impala)):
        return random_sequences(algorithm, batch_size=4)
    return random_transitions(algorithm, batch_size=8)


@contextmanager
def no_numbers() -> Iterator[None]:
    """Make tensors fake: they have shapes but no values, and reading a value raises."""

    def refuse(*rest: Any, **more: Any) -> None:
        raise AssertionError("an update copied a tensor to the host")

    with (
        FakeTensorMode(allow_non_fake_inputs=False),
        # Everything is on one device here, and fake parameters cannot be moved.
        mock.patch.object(nn.Module, "to", lambda module, *rest, **more: module),
        mock.patch.object(Tensor, "cpu", refuse),
        mock.patch.object(Tensor, "numpy", refuse),
    ):
        yield


def zero_items(algorithm: Algorithm) -> Items:
    """Four items of zeros, with frames."""
    schema = algorithm.schema()
    assert schema.frames is not None
    columns = {c.name: np.zeros((4, *c.shape), c.dtype) for c in schema.columns}
    depth = schema.frames.max_frames
    frames = np.zeros((4, depth, *schema.frames.shape), np.uint8)
    return Items(np.arange(4), np.ones(4), columns, frames, np.full(4, depth, np.int32))


def update_without_numbers(algorithm: Algorithm, batch: Any = None) -> None:
    batch = batch_of(numbers_of(algorithm)) if batch is None else batch
    with no_numbers():
        fake = map_tensors(batch, lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        learner = algorithm.learner(CPU)
        for step in range(2):  # the second update has the optimizer's averages
            learner.learn(fake, Progress(step, 100 * step))


class Cooling(ApexDQN):
    """Scales its TD errors by the run's progress."""

    def td_error(self, batch: Any, online: Any, target: Any) -> Any:
        errors, metrics = super().td_error(batch, online, target)
        return errors * (1.0 - self.progress.learner_step / 100).clamp(min=0.1), metrics


CASES["progress"] = (Cooling, VECTORS, {})


@pytest.mark.parametrize("name", CASES)
def test_update_reads_no_tensor_value(name: str) -> None:
    kind, spec, settings = CASES[name]
    update_without_numbers(kind(kind.Config(**settings), spec))


@pytest.mark.parametrize("name", ["impala, lstm", "impala, several, lstm"])
def test_loss_copies_no_list_to_the_device(name: str) -> None:
    """A CUDA graph cannot record such a copy, which waits for the device."""
    kind, spec, settings = CASES[name]
    algorithm = kind(kind.Config(**settings), spec)
    batch, network = batch_of(numbers_of(algorithm)), algorithm.network()
    refused = AssertionError("an update made a tensor of numbers of Python")
    with mock.patch("torch.tensor", side_effect=refused):
        losses = algorithm.loss(batch, network, None)
    assert losses[0].shape == (4,)


@pytest.mark.parametrize("name", ["apex_dqn, images, adam", "r2d2, images"])
def test_expansion_of_a_packed_batch_reads_no_tensor_value(name: str) -> None:
    kind, spec, settings = CASES[name]
    algorithm = kind(kind.Config(**settings), spec)
    update_without_numbers(algorithm, algorithm.pack(zero_items(algorithm)))


@pytest.mark.parametrize("name", [name for name in CASES if "apex_dpg" not in name])
def test_policy_computes_without_reading_a_tensor_value(name: str) -> None:
    kind, spec, settings = CASES[name]
    algorithm = kind(kind.Config(**settings), spec)
    dtype = torch.uint8 if spec.frame_stack else torch.float32
    with no_numbers(), torch.no_grad():
        policy = algorithm.policy()
        outputs = policy.compute(
            InputTensors(
                torch.empty((6, *spec.policy_shape), dtype=dtype),
                torch.empty((6, policy.core_size)),
                torch.from_numpy(spec.no_actions(6)),
                torch.empty(6),
            )
        )
    assert {len(output) for output in outputs.values()} == {6}


class Peeking(ApexDQN):
    """Reads a tensor value in each update."""

    def td_error(self, batch: Any, online: Any, target: Any) -> Any:
        errors, metrics = super().td_error(batch, online, target)
        return errors, {**metrics, "seen": torch.tensor(self.peek(errors))}

    def peek(self, errors: Tensor) -> float:
        return errors.mean().item()


class Branching(Peeking):
    def peek(self, errors: Tensor) -> float:
        return 1.0 if (errors > 0).all() else 0.0


class Masking(Peeking):
    def peek(self, errors: Tensor) -> float:
        return float(len(errors[errors > 0]))


class Copying(Peeking):
    def peek(self, errors: Tensor) -> float:
        return len(errors.cpu())


@pytest.mark.parametrize(
    ("kind", "refusal"),
    [
        (Peeking, "_local_scalar_dense"),
        (Branching, "_local_scalar_dense"),
        (Masking, "nonzero"),
        (Copying, "an update copied a tensor to the host"),
    ],
)
def test_update_that_reads_a_tensor_value_is_detected(kind: type[Peeking], refusal: str) -> None:
    """Guards the test above: it can fail."""
    with pytest.raises(Exception, match=refusal):
        update_without_numbers(kind(kind.Config(), VECTORS))
