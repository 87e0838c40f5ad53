"""Sequences across episodes against literal rows and a slow oracle."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from apex.acting.accumulator import VectorStep
from apex.algos.impala import Impala
from apex.algos.r2d2 import R2D2
from apex.algos.sequence_batches import SequenceAlgorithm, stacked
from apex.data import frame_compression
from apex.data.chunks import Chunk, Items, Samples
from apex.envs.spec import EnvSpec
from apex.errors import CorruptItemsError
from tests.support.batches import arrays_of
from tests.support.builders import env_spec
from tests.support.sizes import bytes_held

torch.set_num_threads(1)

SPECS = {
    "frames": env_spec((4, 4), stack=3, actions=5),
    "single_frames": env_spec((4, 4), stack=1, actions=5),
    "vectors": env_spec((3,), "float32", actions=5),
}


@dataclass
class Step:
    """One step of one environment, as the acting loop passes it on."""

    observation: np.ndarray
    action: int
    reward: float
    terminated: bool = False
    truncated: bool = False
    life_lost: bool = False
    ignored: bool = False
    logits: np.ndarray = field(default_factory=lambda: np.zeros(5, np.float32))
    core_state: np.ndarray = field(default_factory=lambda: np.zeros(4, np.float32))


def random_steps(spec: EnvSpec, length: int, rng: np.random.Generator) -> list[Step]:
    """Episodes of 1 to 9 steps that end in each way, with their ignored steps."""
    steps: list[Step] = []
    left, ended = int(rng.integers(1, 10)), False
    while len(steps) < length:
        if spec.observation_dtype == "uint8":
            observation = rng.integers(1, 256, spec.observation_shape).astype(np.uint8)
        else:
            observation = rng.normal(size=spec.observation_shape).astype(np.float32)
        step = Step(observation, int(rng.integers(5)), float(rng.normal()), ignored=ended)
        step.logits = rng.normal(size=5).astype(np.float32)
        step.core_state = rng.normal(size=4).astype(np.float32)
        if ended:
            step.reward, left, ended = 1e6, int(rng.integers(1, 10)), False
        else:
            left -= 1
            if left == 0:
                step.terminated = bool(rng.random() < 0.5)
                step.truncated = not step.terminated
                ended = True
            else:
                step.life_lost = bool(rng.random() < 0.1)
        steps.append(step)
    return steps


def feed(accumulator, streams: list[list[Step]]) -> list[Chunk]:
    """Step all environments together; the observations' memory is reused at each step."""
    chunks: list[Chunk] = []
    buffer = np.empty_like(np.stack([stream[0].observation for stream in streams]))
    for number, row in enumerate(zip(*streams)):
        buffer[:] = [step.observation for step in row]
        flags = {
            name: np.array([getattr(step, name) for step in row])
            for name in ("terminated", "truncated", "life_lost", "ignored")
        }
        q_values = np.zeros(len(row), np.float32)
        chunks += accumulator.add(
            VectorStep(
                observations=buffer,
                actions=np.array([step.action for step in row]),
                extras={
                    "behaviour_logits": np.stack([step.logits for step in row]),
                    "core_state": np.stack([step.core_state for step in row]),
                    "q_value": q_values, "max_q": q_values,
                },
                rewards=np.array([step.reward for step in row]),
                learner_step=number,
                **flags,
            )
        )  # fmt: skip
        buffer[:] = 99
    return chunks


def rows_of(steps: list[Step], gamma: float, depth: int) -> list[dict[str, object]]:
    """Every row of the steps, in order, straight from the definition."""
    rows: list[dict[str, object]] = []
    episode: list[np.ndarray] = []
    before: Step | None = None
    for number, step in enumerate(steps):
        if step.ignored and before is not None and before.terminated:
            episode, before = [], None
            continue
        episode.append(step.observation)
        blank = np.zeros_like(step.observation)
        stack = [*[blank] * depth, *episode][-depth:] if depth else step.observation
        dead = step.terminated or step.life_lost or step.ignored
        rows.append(
            {
                "observation": np.stack(stack) if depth else stack,
                "action": step.action,
                "reward": 0.0 if step.ignored else step.reward,
                "discount": 0.0 if dead else gamma,
                "is_first": len(episode) == 1,
                "is_last": step.ignored,
                "last_action": before.action if before else 0,
                "last_reward": before.reward if before else 0.0,
                "logits": step.logits,
                "core_state": step.core_state,
                "learner_step": number,
            }
        )
        before = step
        if step.ignored:
            episode, before = [], None
    return rows


def agents(kind: str, spec: EnvSpec) -> SequenceAlgorithm:
    if kind == "impala":
        config = Impala.Config(unroll_length=6, lstm=2, discount=0.9, hidden=(4,))
        return Impala(config, spec)
    settings = {"burn_in": 3, "unroll_length": 4, "overlap": 2, "n_step": 2}
    return R2D2(R2D2.Config(lstm=2, discount=0.9, hidden=(4,), **settings), spec)


def collated(agent: SequenceAlgorithm, chunk: Chunk) -> dict[str, np.ndarray]:
    count = len(chunk)
    samples = Samples(np.arange(count), np.ones(count), chunk.columns, chunk.frames)
    return arrays_of(agent.collate(frame_compression.decompress(samples, agent.schema())))


@pytest.mark.parametrize(
    ("kind", "spec", "chunk_length"),
    list(itertools.product(("impala", "r2d2"), SPECS, (1, 3))),
)
def test_sequences_match_the_oracle_over_random_episodes(kind, spec, chunk_length):
    rng = np.random.default_rng(chunk_length)
    agent = agents(kind, SPECS[spec])
    layout = agent.layout()
    streams = [random_steps(SPECS[spec], 150, rng) for _ in range(2)]
    accumulator = agent.accumulator(2, chunk_length)
    chunks = feed(accumulator, streams) + accumulator.flush()
    items: list[dict[str, np.ndarray]] = []
    for chunk in chunks:
        chunk.check(agent.schema())
        batch = collated(agent, chunk)
        batch["learner_step"] = chunk.columns["learner_step"]
        items += [{name: batch[name][i] for name in batch} for i in range(len(chunk))]
    expected = [rows_of(stream, 0.9, SPECS[spec].frame_stack) for stream in streams]
    wanted = [
        rows[begin : begin + layout.length]
        for rows in expected
        for begin in range(0, len(rows) - layout.length + 1, layout.period)
    ]
    assert len(items) == len(wanted) > 20
    # Sequences of both environments are interleaved; those of one are in order.
    items.sort(key=lambda item: item["learner_step"])
    wanted.sort(key=lambda rows: rows[0]["learner_step"])
    for item in items:
        match = next(
            rows for rows in wanted
            if rows[0]["learner_step"] == item["learner_step"]
            and np.array_equal(rows[0]["observation"], item["observation"][0])
        )  # fmt: skip
        wanted = [rows for rows in wanted if rows is not match]
        for name in ("observation", "action", "is_first", "is_last", "last_action"):
            np.testing.assert_array_equal(item[name], np.array([row[name] for row in match]))
        for name in ("reward", "discount", "last_reward"):
            np.testing.assert_allclose(item[name], [row[name] for row in match], rtol=1e-6)
        np.testing.assert_array_equal(item["core_state"], match[0]["core_state"])
        if kind == "impala":
            logits = np.stack([row["logits"] for row in match])
            np.testing.assert_array_equal(item["behaviour_logits"], logits)


def test_random_steps_contain_every_kind_of_end():
    """Guards the test above: its data must reach what it claims to test."""
    rows = rows_of(random_steps(SPECS["vectors"], 400, np.random.default_rng(0)), 0.9, 0)
    kinds = {(bool(r["is_first"]), bool(r["is_last"]), r["discount"] == 0) for r in rows}
    assert kinds == {
        (True, False, False), (True, False, True), (False, False, False), (False, False, True),
        (False, True, True),
    }  # fmt: skip


def numbered(count: int, **flags: int) -> list[Step]:
    """Observations and rewards 0, 1, 2, ..."""
    steps = [Step(np.full(3, t, np.float32), t % 5, float(t)) for t in range(count)]
    for name, number in flags.items():
        setattr(steps[number], name, True)
    return steps


def only_item(steps: list[Step]) -> dict[str, list]:
    agent = agents("impala", SPECS["vectors"])
    (chunk,) = feed(agent.accumulator(1, 1), [steps])
    batch = collated(agent, chunk)
    return {name: batch[name][0].tolist() for name in batch}


def test_terminated_episode_omits_its_final_observation():
    item = only_item(numbered(8, terminated=2, ignored=3))
    assert [row[0] for row in item["observation"]] == [0, 1, 2, 4, 5, 6, 7]
    assert item["discount"] == pytest.approx([0.9, 0.9, 0, 0.9, 0.9, 0.9, 0.9])
    assert item["is_first"] == [True, False, False, True, False, False, False]
    assert not any(item["is_last"])
    assert item["last_reward"] == [0, 0, 1, 0, 4, 5, 6]
    assert item["last_action"] == [0, 0, 1, 0, 4, 0, 1]


def test_truncated_episode_keeps_its_final_observation_for_its_value():
    item = only_item(numbered(7, truncated=2, ignored=3))
    assert [row[0] for row in item["observation"]] == [0, 1, 2, 3, 4, 5, 6]
    assert item["is_last"] == [False, False, False, True, False, False, False]
    assert item["is_first"] == [True, False, False, False, True, False, False]
    assert item["discount"] == pytest.approx([0.9, 0.9, 0.9, 0, 0.9, 0.9, 0.9])
    assert item["reward"] == [0, 1, 2, 0, 4, 5, 6]


def test_lost_life_zeroes_the_discount_and_the_episode_continues_in_the_sequence():
    item = only_item(numbered(7, life_lost=2))
    assert item["discount"] == pytest.approx([0.9, 0.9, 0, 0.9, 0.9, 0.9, 0.9])
    assert item["is_first"] == [True] + [False] * 6 and not any(item["is_last"])


def test_consecutive_sequences_share_the_bootstrap_row_and_have_the_previous_action():
    agent = agents("impala", SPECS["vectors"])
    chunks = feed(agent.accumulator(1, 1), [numbered(13)])
    first, second = (chunk.columns for chunk in chunks)
    assert first["observation"][0, :, 0].tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert second["observation"][0, :, 0].tolist() == [6, 7, 8, 9, 10, 11, 12]
    assert (first["last_action"][0], first["last_reward"][0]) == (0, 0.0)
    assert (second["last_action"][0], second["last_reward"][0]) == (0, 5.0)
    assert (first["learner_step"][0], second["learner_step"][0]) == (0, 6)


def test_frames_of_overlapping_sequences_are_stored_once_in_a_chunk():
    spec, rng = SPECS["frames"], np.random.default_rng(0)
    agent = agents("r2d2", spec)
    steps = [Step(rng.integers(1, 256, (4, 4)).astype(np.uint8), 0, 0.0) for _ in range(13)]
    (chunk,) = feed(agent.accumulator(1, 3), [steps])
    # Three sequences of nine rows, each two rows after the one before: 13 frames and no more.
    assert len(chunk.frames.frame_lengths) == 13
    assert chunk.frames.first_frame.tolist() == [0, 0, 2]
    assert chunk.frames.pad_count.tolist() == [2, 0, 0]
    assert chunk.frames.frame_count.tolist() == [9, 11, 11]


def test_memory_of_an_accumulator_stays_bounded_over_a_long_run():
    spec, rng = SPECS["frames"], np.random.default_rng(1)
    agent = agents("r2d2", spec)
    accumulator, sizes = agent.accumulator(1, 2), []
    for step in random_steps(spec, 2000, rng):
        feed(accumulator, [[step]])
        sizes.append(bytes_held(accumulator))
    assert max(sizes[200:]) <= 1.1 * max(sizes[:200])


def test_stack_never_reaches_into_the_episode_before():
    values = np.arange(1, 7, dtype=np.uint8).reshape(1, 6, 1, 1)
    is_first = np.array([[False, True, False, False]])
    stacks = stacked(values, is_first, 3)[0, :, :, 0, 0]
    assert stacks.tolist() == [[1, 2, 3], [0, 0, 4], [0, 4, 5], [4, 5, 6]]


@pytest.mark.parametrize(("name", "value"), [("action", 5), ("action", -1), ("last_action", 7)])
def test_item_with_an_invalid_action_is_reported_as_corrupt(name, value):
    agent = agents("impala", SPECS["vectors"])
    (chunk,) = feed(agent.accumulator(1, 1), [numbered(7)])
    columns = {key: array.copy() for key, array in chunk.columns.items()}
    columns[name][..., -1] = value
    with pytest.raises(CorruptItemsError) as error:
        agent.collate(Items(np.array([77]), np.ones(1), columns))
    assert error.value.item_ids == [77]


def test_item_with_too_few_frames_is_reported_as_corrupt():
    agent = agents("impala", SPECS["frames"])
    steps = [Step(np.ones((4, 4), np.uint8), 0, 0.0) for _ in range(7)]
    (chunk,) = feed(agent.accumulator(1, 1), [steps])
    pixels = np.zeros((1, 9, 4, 4), np.uint8)
    items = Items(np.array([5]), np.ones(1), chunk.columns, pixels, np.array([8], np.int32))
    with pytest.raises(CorruptItemsError) as error:
        agent.collate(items)
    assert error.value.item_ids == [5]
