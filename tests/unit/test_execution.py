"""Recorded updates: a replay equals the update that Python runs, and what cannot be recorded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from apex.acting.exploration import Progress
from apex.algos.base import Algorithm, Learner
from apex.algos.batches import (
    PackedSequences,
    PackedTransitions,
    Transitions,
    expanded,
    map_tensors,
)
from apex.api import R2D2, ApexDPG, ApexDQN, Impala
from apex.envs.spec import ActionBounds, EnvSpec
from apex.execution.execution import COMPARED, WARM_UP, Eager, Execution, Graphed
from examples.munchausen import Munchausen
from tests.support.batches import batch_of, random_sequences, random_transitions
from tests.support.tape import Tape

torch.set_num_threads(1)
CPU = torch.device("cpu")
VECTORS = EnvSpec("Test-v0", (3,), "float32", 0, 4)
IMAGES = EnvSpec("Test-v0", (12, 12), "uint8", 2, 4)
CONTINUOUS = EnvSpec(
    "Test-v0", (3,), "float32", 0, 0, ActionBounds("float32", (2,), (-2.0, 0.0), (2.0, 10.0))
)
SEQUENCES = {"burn_in": 3, "unroll_length": 5, "overlap": 2, "n_step": 2, "hidden": (8,)}
SIZE = 8

CASES: dict[str, tuple[Any, EnvSpec, dict[str, Any]]] = {
    "apex_dqn, rmsprop": (ApexDQN, VECTORS, {"optimizer": "rmsprop", "stream_hidden": (8,)}),
    "apex_dqn, images, adam": (
        ApexDQN, IMAGES, {"conv": ((4, 3, 2),), "optimizer": "adam", "stream_hidden": (8,)},
    ),
    "apex_dpg": (ApexDPG, CONTINUOUS, {"actor_hidden": (8, 8), "critic_hidden": (8, 8)}),
    "r2d2": (R2D2, VECTORS, {**SEQUENCES, "lstm": 4, "stream_hidden": (8,)}),
    "r2d2, images": (
        R2D2, IMAGES, {**SEQUENCES, "conv": ((4, 3, 2),), "lstm": 4, "stream_hidden": (8,)},
    ),
    "impala": (Impala, VECTORS, {"unroll_length": 9, "hidden": (8,)}),
    "impala, lstm": (Impala, VECTORS, {"unroll_length": 9, "lstm": 4, "hidden": (8,)}),
    "munchausen": (Munchausen, VECTORS, {}),
}  # fmt: skip


def algorithm_of(name: str) -> Algorithm:
    kind, spec, settings = CASES[name]
    settings = {**settings, "learning_rate_decay_steps": 50}
    if hasattr(kind.Config(), "target_update_period"):
        settings["target_update_period"] = 7
    return kind(kind.Config(**settings), spec)


def batch_for(algorithm: Algorithm, seed: int, size: int = SIZE) -> Any:
    """A random batch; sequences begin episodes at random rows."""
    make = random_sequences if isinstance(algorithm, (R2D2, Impala)) else random_transitions
    return batch_of(make(algorithm, batch_size=size, seed=seed))


def learner_of(algorithm: Algorithm) -> Learner:
    torch.manual_seed(3)
    return algorithm.learner(CPU)


def states_of(learner: Learner) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in learner.state_tensors()]


def train(
    learner: Learner, execution: Execution, batches: list[Any], first: int = 0
) -> list[list[float]]:
    """Make an update of each batch; returns the priorities of each."""
    found = []
    for step, batch in enumerate(batches, first):
        update = learner.learn(batch, Progress(step, 10 * step), execution)
        found.append(update.priorities.tolist())
    return found


@pytest.mark.parametrize("name", CASES)
def test_100_replayed_updates_equal_eager_ones(name: str) -> None:
    algorithm, tape = algorithm_of(name), Tape(tolerance=1e-5)
    batches = [batch_for(algorithm, seed) for seed in range(106)]
    graphed, eager = learner_of(algorithm), learner_of(algorithm)
    found = train(graphed, Graphed(graphed, tape, SIZE), batches)
    expected = train(eager, Eager(eager), batches)
    assert tape.replayed >= 100
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-6)
    for one, other in zip(states_of(graphed), states_of(eager)):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def packed(algorithm: Algorithm, seed: int) -> PackedTransitions | PackedSequences:
    """A random batch of images as it crosses to the device."""
    whole = batch_for(algorithm, seed)
    columns = {**whole._asdict()}
    rng = np.random.default_rng(seed)
    depth = IMAGES.frame_stack
    del columns["observation"]
    if isinstance(whole, Transitions):
        del columns["next_observation"]
        frames = rng.integers(0, 256, (SIZE, depth + 3, 12, 12), dtype=np.uint8)
        starts = torch.from_numpy(rng.integers(1, 4, SIZE))
        return PackedTransitions(torch.from_numpy(frames), starts, depth, columns)
    length = whole.action.shape[1]
    frames = rng.integers(0, 256, (SIZE, depth - 1 + length, 12, 12), dtype=np.uint8)
    return PackedSequences(torch.from_numpy(frames), columns)


@pytest.mark.parametrize("name", ["apex_dqn, images, adam", "r2d2, images"])
def test_packed_batches_are_expanded_in_the_recorded_update(name: str) -> None:
    algorithm, tape = algorithm_of(name), Tape(tolerance=1e-5)
    batches = [packed(algorithm, seed) for seed in range(15)]
    graphed, eager = learner_of(algorithm), learner_of(algorithm)
    found = train(graphed, Graphed(graphed, tape, SIZE), batches)
    expected = train(eager, Eager(eager), [expanded(batch) for batch in batches])
    assert tape.recorded == 1 and tape.replayed == 15 - WARM_UP
    assert np.allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_transitions_are_replayed_bit_for_bit() -> None:
    algorithm, tape = algorithm_of("apex_dqn, images, adam"), Tape()
    batches = [batch_for(algorithm, seed) for seed in range(40)]
    graphed, eager = learner_of(algorithm), learner_of(algorithm)
    assert train(graphed, Graphed(graphed, tape, SIZE), batches) == train(
        eager, Eager(eager), batches
    )
    assert tape.recorded == 1 and tape.replayed == 40 - WARM_UP
    for one, other in zip(states_of(graphed), states_of(eager)):
        assert torch.equal(one, other)


class Counting(ApexDQN):
    """Changes a Python value in each update, too little to be seen in the results."""

    count = 0

    def td_error(self, batch: Any, online: Any, target: Any) -> Any:
        self.count += 1
        return super().td_error(batch, online, target)


class Alternating(ApexDQN):
    """Takes its scale from a list, which is Python state that no plain value shows."""

    scales = [1.0, 2.0, 3.0]  # noqa: RUF012 - what the test is about

    def td_error(self, batch: Any, online: Any, target: Any) -> Any:
        self.scales.append(self.scales.pop(0))
        errors, metrics = super().td_error(batch, online, target)
        return errors * self.scales[0], metrics


class Reading(ApexDQN):
    """Waits for the device."""

    def td_error(self, batch: Any, online: Any, target: Any) -> Any:
        errors, metrics = super().td_error(batch, online, target)
        return errors * (1.0 + 0.0 * errors.sum().item()), metrics


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Counting, "an update changes Counting.count in Python, from 3 to 4"),
        (Alternating, "not the same as one that Python runs: the priorities differ"),
        (Reading, "the update cannot be recorded: operation not permitted"),
    ],
)
def test_update_with_python_state_stays_eager_and_the_log_says_why(
    kind: Callable[..., Algorithm], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    def make() -> Learner:
        Alternating.scales = [1.0, 2.0, 3.0]
        return learner_of(kind(ApexDQN.Config(stream_hidden=(8,)), VECTORS))

    algorithm = algorithm_of("apex_dqn, rmsprop")
    batches = [batch_for(algorithm, seed) for seed in range(12)]
    eager = make()
    expected = train(eager, Eager(eager), batches)
    graphed, tape = make(), Tape()
    execution = Graphed(graphed, tape, SIZE)
    with caplog.at_level(logging.INFO, "apex.learner"):
        found = train(graphed, execution, batches)
    assert not execution.replays
    said = [r.getMessage() for r in caplog.records if "execution" in r.getMessage()]
    assert len(said) == 1 and said[0].startswith("execution: eager: ") and reason in said[0]
    assert tape.replayed <= 1
    if kind is not Alternating:  # its recording has moved its list on
        assert found == expected


def test_short_batch_is_padded_with_items_of_no_weight() -> None:
    algorithm, tape = algorithm_of("apex_dqn, rmsprop"), Tape(tolerance=1e-5)
    batches = [batch_for(algorithm, seed) for seed in range(WARM_UP + COMPARED + 2)]
    short = map_tensors(batch_for(algorithm, 99), lambda tensor: tensor[:5].clone())
    graphed, eager = learner_of(algorithm), learner_of(algorithm)
    found = train(graphed, Graphed(graphed, tape, SIZE), [*batches, short, batches[0]])
    expected = train(eager, Eager(eager), [*batches, short, batches[0]])
    assert [len(priorities) for priorities in found[-2:]] == [5, 8]
    assert tape.replayed == COMPARED + 2 + 2
    for one, other in zip(found, expected):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    for tensor, other in zip(states_of(graphed), states_of(eager)):
        assert torch.allclose(tensor, other, rtol=1e-4, atol=1e-6)


def test_batch_of_another_form_runs_eagerly_until_it_is_recorded_itself() -> None:
    algorithm, tape = algorithm_of("apex_dqn, rmsprop"), Tape()
    graphed, eager = learner_of(algorithm), learner_of(algorithm)
    batches = [batch_for(algorithm, seed) for seed in range(20)]
    for k in range(7, 20, 2):  # with a mask, which is one more tensor
        batches[k] = batches[k]._replace(action_mask=torch.ones(SIZE, 4, dtype=torch.bool))
    assert train(graphed, Graphed(graphed, tape, SIZE), batches) == train(
        eager, Eager(eager), batches
    )
    assert tape.recorded == 2


def test_graphs_are_recorded_again_after_a_checkpoint_was_loaded() -> None:
    algorithm, tape = algorithm_of("apex_dqn, images, adam"), Tape()
    batches = [batch_for(algorithm, seed) for seed in range(30)]
    graphed, eager = learner_of(algorithm), learner_of(algorithm)
    execution = Graphed(graphed, tape, SIZE)
    train(graphed, execution, batches[:10])
    assert execution.replays
    train(eager, Eager(eager), batches[:10])
    graphed.load_state_dict(deepcopy(eager.state_dict()))  # the optimizer has new averages
    execution.reset()
    assert train(graphed, execution, batches[10:], 10) == train(
        eager, Eager(eager), batches[10:], 10
    )
    assert tape.recorded == 2


class TimedTape(Tape):
    """A tape for which an eager update takes 1 ms, and a replay `replay_ms`."""

    def __init__(self, replay_ms: float) -> None:
        super().__init__()
        self._replay_ms, self._ms, self._before = replay_ms, 0.0, 0

    def now(self) -> Any:
        replays, self._before = self.replayed - self._before, self.replayed
        self._ms += replays * self._replay_ms if replays else 1.0
        return Instant(self._ms)


class Instant:
    def __init__(self, ms: float) -> None:
        self.ms = ms

    def ms_until(self, later: Any) -> float:
        return later.ms - self.ms


@pytest.mark.parametrize(
    ("slower", "said"),
    [
        (10.0, "execution: eager: 10 ms an update replayed as a graph, 1 ms run eagerly"),
        (0.25, "execution: graph: 0.25 ms an update replayed as a graph, 1 ms run eagerly"),
    ],
)
def test_graph_is_kept_only_if_it_is_faster(
    slower: float, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    algorithm, tape = algorithm_of("apex_dqn, rmsprop"), TimedTape(slower)
    learner = learner_of(algorithm)
    execution = Graphed(learner, tape, SIZE, only_if_faster=True)
    batch = batch_for(algorithm, 0)
    with caplog.at_level(logging.INFO, "apex.learner"):
        train(learner, execution, [batch] * 60)
    (found,) = [r.getMessage() for r in caplog.records if "ms an update" in r.getMessage()]
    assert found == said
    assert tape.replayed == (COMPARED + 20 if slower > 1 else 60 - WARM_UP - 20)
