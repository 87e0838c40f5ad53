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
from apex.acting.normalization import Normalization
from apex.algos.base import Algorithm, Learner, Update
from apex.algos.batches import (
    PackedSequences,
    PackedTransitions,
    Transitions,
    expanded,
    map_tensors,
)
from apex.algos.loss_learner import LossLearner
from apex.algos.normalization import normalized
from apex.api import R2D2, ApexDPG, ApexDQN, Impala
from apex.envs.spec import ActionBounds, EnvSpec
from apex.execution.comparison import (
    LearnerState,
    changed_value,
    copied,
    difference,
    equal,
    host_values,
)
from apex.execution.execution import (
    COMPARED,
    MOST_FORMS,
    WARM_UP,
    Eager,
    Execution,
    Graphed,
)
from apex.ops.moments import Moments
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
NORMALIZED = Normalization({"observation": (3,)}, rewards=True, discount=0.99)

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
    "normalized": (normalized(ApexDQN, NORMALIZED), VECTORS, {"stream_hidden": (8,)}),
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
    return [t.detach().clone() for tensors in learner.state_tensors().values() for t in tensors]


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


def test_replays_read_statistics_that_are_written_between_updates() -> None:
    algorithm, tape = algorithm_of("normalized"), Tape(tolerance=1e-5)
    learners = graphed, eager = learner_of(algorithm), learner_of(algorithm)
    executions = Graphed(graphed, tape, SIZE), Eager(eager)
    found: tuple[list[list[float]], ...] = ([], [])
    for step in range(30):
        spread = np.full(3, 10.0 * (step + 1))
        moments = {"observation": Moments(10, np.full(3, 0.1 * step), spread)}
        moments["discounted_return"] = Moments(10, np.zeros(1), spread[:1])
        for learner, execution, priorities in zip(learners, executions, found):
            assert learner.normalizer is not None
            learner.normalizer.write(learner.network, moments)
            priorities += train(learner, execution, [batch_for(algorithm, step)], step)
    assert tape.replayed >= 20
    assert np.allclose(*found, rtol=1e-4, atol=1e-6)
    still = learner_of(algorithm)
    kept = train(still, Eager(still), [batch_for(algorithm, step) for step in range(30)])
    assert not np.allclose(found[0][-1], kept[-1], rtol=0.1), "the statistics make a difference"


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
        (Counting, "an update changes LossLearner._algorithm.count in Python, from 3 to 4"),
        (Alternating, "a replay differs from the update that Python runs: the priorities"),
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


@pytest.mark.parametrize("name", CASES)
def test_short_batch_is_padded_with_items_of_no_weight(name: str) -> None:
    algorithm, tape = algorithm_of(name), Tape(tolerance=1e-5)
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


class Annealed(LossLearner):
    """Scales its loss by a Python number that hardly changes from one update to the next."""

    def update(self, batch: Any) -> Update:
        self._optimization.step(batch.n_step_return.mean() * self.network.value[0].weight.sum())
        loss = self._algorithm.loss(batch, self.network, self.target)
        return Update(loss.priority * (1.0 + self.updates / 1e7), {})


def test_update_that_reads_the_number_of_updates_stays_eager(
    caplog: pytest.LogCaptureFixture,
) -> None:
    algorithm, tape = algorithm_of("apex_dqn, rmsprop"), Tape(tolerance=1e-2)
    learner = Annealed(algorithm, CPU)
    execution = Graphed(learner, tape, SIZE)
    with caplog.at_level(logging.INFO, "apex.learner"):
        train(learner, execution, [batch_for(algorithm, seed) for seed in range(10)])
    assert not execution.replays and learner.updates == 10
    assert "a replay differs from the update that Python runs: the priorities" in caplog.text


def test_only_so_many_forms_are_recorded(caplog: pytest.LogCaptureFixture) -> None:
    algorithm, tape = algorithm_of("apex_dqn, rmsprop"), Tape()
    learner = learner_of(algorithm)
    execution = Graphed(learner, tape, SIZE)
    batch = batch_for(algorithm, 0)
    for extra in range(MOST_FORMS + 2):
        extras = {f"extra {extra}": torch.ones(SIZE)}
        train(learner, execution, [batch._replace(extras=extras)] * (WARM_UP + COMPARED + 1))
    assert tape.recorded == MOST_FORMS
    assert caplog.text.count("eager for further forms of batches, since 4 are recorded") == 1


def compared(
    change: Callable[[Update, LearnerState], Update], tolerance: float = 1e-2
) -> str | None:
    """What `difference` says after a change of the replayed results, in place or not."""
    algorithm = algorithm_of("apex_dqn, images, adam")
    learner = learner_of(algorithm)
    learner.network.register_buffer("mask", torch.tensor([True, False]))
    batch = batch_for(algorithm, 0)
    learner.learn(batch, Progress(0, 0))  # the optimizer has its averages
    before = LearnerState(learner)
    results = []
    for _ in range(2):
        before.restore()
        results.append((learner.run_update(batch), LearnerState(learner)))
    replayed, run = results
    replayed = (change(copied(replayed[0]), replayed[1]), replayed[1])
    return difference(replayed, run, before, tolerance)


def _with_metric(update: Update, value: float) -> Update:
    return update._replace(metrics={**update.metrics, "loss": torch.tensor(value)})


def _set(tensors: list[torch.Tensor], value: float) -> None:
    for tensor in tensors:
        tensor.fill_(value)


@pytest.mark.parametrize("tolerance", [0.0, 1e-2])
def test_equal_updates_do_not_differ(tolerance: float) -> None:
    assert compared(lambda update, state: update, tolerance) is None


def test_each_kind_of_result_is_compared() -> None:
    def frozen(update: Update, state: LearnerState) -> Update:
        """As a replay that changes no parameter: the optimizer's averages are right."""
        learner = learner_of(algorithm_of("apex_dqn, images, adam"))
        learner.learn(batch_for(algorithm_of("apex_dqn, images, adam"), 0), Progress(0, 0))
        state.copies["parameters"] = LearnerState(learner).copies["parameters"]
        return update

    def averages(update: Update, state: LearnerState) -> Update:
        _set(state.copies["optimizer's exp_avg_sq"], 1.0)
        return update

    def step(update: Update, state: LearnerState) -> Update:
        _set(state.copies["optimizer's step"], 7.0)
        return update

    assert compared(lambda update, state: _with_metric(update, 99.0)) == "the metric 'loss'"
    assert compared(frozen) == "the parameters"
    assert compared(averages) == "the optimizer's exp_avg_sq"
    assert compared(step) == "the optimizer's step"
    nan = torch.full((SIZE,), torch.nan)
    assert compared(lambda update, state: update._replace(priorities=nan)) == "the priorities"


def test_numbers_that_are_not_finite_are_equal_at_the_same_places_only() -> None:
    one = torch.tensor([1.0, torch.nan, torch.inf])
    assert equal(one, one.clone(), 0.0) and equal(one, one.clone(), 1e-2)
    assert not equal(torch.tensor([torch.nan, 1.0, torch.inf]), one, 1e-2)
    assert not equal(torch.tensor([2.0, torch.nan, torch.inf]), one, 1e-2)
    assert equal(torch.tensor([1.005, torch.nan, torch.inf]), one, 1e-2)


class Nested:
    """A user's helper object that counts."""

    def __init__(self) -> None:
        self.calls = {"made": 0}


class Helped(ApexDQN):
    """Counts in a dictionary of an object of its own."""

    def td_error(self, batch: Any, online: Any, target: Any) -> Any:
        self.helper.calls["made"] += 1
        return super().td_error(batch, online, target)


def test_python_values_are_found_in_objects_within_objects() -> None:
    algorithm = Helped(ApexDQN.Config(stream_hidden=(8,)), VECTORS)
    algorithm.helper = Nested()
    learner = algorithm.learner(CPU)
    before = host_values(learner)
    learner.learn(batch_for(algorithm, 0), Progress(0, 0))
    assert changed_value(before, host_values(learner)) == (
        "an update changes LossLearner._algorithm.helper.calls in Python, from \"{'made': 0}\" to "
        "\"{'made': 1}\""
    )


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
