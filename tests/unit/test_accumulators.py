"""n-step transitions against literal numbers and a slow oracle."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from apex.acting.accumulator import VectorStep
from apex.acting.frame_stack import FrameStacker
from apex.acting.transition_accumulator import NStepAccumulator
from apex.algos.apex_dqn import ApexDQN
from apex.data import frame_compression
from apex.data.chunks import Chunk, Samples
from apex.envs.spec import EnvSpec
from tests.support.batches import arrays_of
from tests.support.builders import env_spec
from tests.support.sizes import bytes_held

torch.set_num_threads(1)

EPISODE_END = ("terminated", "truncated", "life_lost_and_truncated")


@dataclass
class Record:
    """One step of one environment: s_t, a_t, r_t, how it ended, and the policy's values."""

    observation: np.ndarray
    stack: np.ndarray
    action: int
    reward: float
    terminated: bool
    truncated: bool
    life_lost: bool
    ignored: bool
    q_value: float
    max_q: float


def algorithm(spec: EnvSpec, n_step: int, discount: float = 0.9) -> ApexDQN:
    return ApexDQN(ApexDQN.Config(n_step=n_step, discount=discount), spec)


def random_stream(spec: EnvSpec, env: int, length: int, rng: np.random.Generator) -> list[Record]:
    """Steps of one environment with NEXT_STEP autoreset: episodes of 1 to 12 steps."""
    records: list[Record] = []
    stacker = FrameStacker(spec.frame_stack)
    left, ignored, first = int(rng.integers(1, 13)), False, True
    for number in range(length):
        if spec.observation_dtype == "uint8":
            observation = rng.integers(0, 256, spec.observation_shape).astype(np.uint8)
        else:
            observation = rng.normal(size=spec.observation_shape).astype(np.float32)
        stack = stacker.push(observation[None], np.array([first]))[0].copy()
        left -= not ignored
        end = rng.choice(EPISODE_END) if left == 0 and not ignored else ""
        lost = (not ignored and rng.random() < 0.15) or end == "life_lost_and_truncated"
        records.append(
            Record(
                observation, stack, action=100_000 * env + number,
                # The ignored step's reward and values must not matter.
                reward=float(rng.normal()) if not ignored else 1e6,
                terminated=end == "terminated",
                truncated="truncated" in end,
                life_lost=lost and end != "terminated",
                ignored=ignored,
                q_value=float(rng.normal()), max_q=float(rng.normal()),
            )
        )  # fmt: skip
        # After an episode's end one step is ignored, and the step after that is a first one.
        if ignored:
            left = int(rng.integers(1, 13))
        first, ignored = ignored, bool(end)
    return records


def oracle(records: list[Record], n: int, gamma: float) -> list[dict[str, object]]:
    """(s_t, a_t, sum_k gamma^k r_{t+k}, gamma^k or 0, s_{t+k}, priority) for every t that has
    its bootstrap observation, straight from the definition."""
    episodes: list[list[Record]] = [[]]
    for record in records:
        episodes[-1].append(record)
        if record.ignored:
            episodes.append([])
    transitions = []
    for s in episodes:
        for t, record in enumerate(s):
            if record.ignored:
                continue
            g, k = 0.0, 0
            while True:
                step = s[t + k]
                g, k = g + gamma**k * step.reward, k + 1
                cut = step.terminated or step.truncated or step.life_lost
                if k == n or cut or t + k >= len(s):
                    break
            if t + k >= len(s):
                continue  # s_{t+k} has not been seen yet
            discount = 0.0 if step.terminated or step.life_lost else gamma**k
            transitions.append(
                {
                    "observation": record.stack,
                    "action": record.action,
                    "n_step_return": g,
                    "discount": discount,
                    "next_observation": s[t + k].stack,
                    "priority": abs(g + discount * s[t + k].max_q - record.q_value),
                }
            )
    return transitions


def feed(accumulator: NStepAccumulator, streams: list[list[Record]]) -> list[Chunk]:
    """Step all environments together; the observations' memory is reused at each step."""
    chunks: list[Chunk] = []
    buffer = np.empty_like(np.stack([stream[0].observation for stream in streams]))
    for number, row in enumerate(zip(*streams)):
        buffer[:] = [record.observation for record in row]
        flags = {
            name: np.array([getattr(record, name) for record in row])
            for name in ("terminated", "truncated", "life_lost", "ignored")
        }
        chunks += accumulator.add(
            VectorStep(
                observations=buffer,
                actions=np.array([record.action for record in row]),
                extras={
                    "max_q": np.array([record.max_q for record in row]),
                    "q_value": np.array([record.q_value for record in row]),
                },
                rewards=np.array([record.reward for record in row]),
                learner_step=number,
                **flags,
            )
        )
        buffer[:] = 99
    return chunks


def collated(agent: ApexDQN, chunk: Chunk) -> dict[str, np.ndarray]:
    """A chunk as the learner's update sees it."""
    count = len(chunk)
    samples = Samples(np.arange(count), np.ones(count), chunk.columns, chunk.frames)
    batch = arrays_of(agent.collate(frame_compression.decompress(samples, agent.schema())))
    acted = chunk.columns["learner_step"]
    return {**batch, "priority": chunk.priorities, "learner_step": acted}


def assert_matches_oracle(agent: ApexDQN, chunks: list[Chunk], streams: list[list[Record]]) -> None:
    """Each environment's items, in order, are exactly the oracle's transitions."""
    items: dict[int, list[dict[str, np.ndarray]]] = {env: [] for env in range(len(streams))}
    for chunk in chunks:
        chunk.check(agent.schema())
        batch = collated(agent, chunk)
        rows = [{name: batch[name][i] for name in batch} for i in range(len(chunk))]
        assert len({row["action"] // 100_000 for row in rows}) == 1
        items[rows[0]["action"] // 100_000] += rows
    for env, stream in enumerate(streams):
        expected = oracle(stream, agent.config.n_step, agent.config.discount)
        assert len(expected) > 20
        assert [row["action"] for row in items[env]] == [row["action"] for row in expected]
        for row, truth in zip(items[env], expected):
            np.testing.assert_array_equal(row["observation"], truth["observation"])
            if truth["discount"] > 0:  # other bootstrap observations are unused
                np.testing.assert_array_equal(row["next_observation"], truth["next_observation"])
            for name in ("n_step_return", "discount", "priority"):
                np.testing.assert_allclose(row[name], truth[name], rtol=1e-4, atol=1e-5)
            # `feed` numbers its steps like the actions: learner_step must be the action's.
            assert row["learner_step"] == row["action"] % 100_000


SPECS = {
    "frames": env_spec((4, 4), stack=3, actions=10**7),
    "frames_with_channels": env_spec((4, 3, 2), stack=4, actions=10**7),
    "single_frames": env_spec((4, 4), stack=1, actions=10**7),
    "vectors": env_spec((3,), "float32", actions=10**7),
    "ram": env_spec((6,), "uint8", actions=10**7),
}


@pytest.mark.parametrize(
    ("kind", "n_step", "chunk_length"), list(itertools.product(SPECS, (1, 3, 5), (1, 4, 50)))
)
def test_items_match_the_oracle_over_random_episodes(kind, n_step, chunk_length):
    spec, rng = SPECS[kind], np.random.default_rng(n_step * 100 + chunk_length)
    agent = algorithm(spec, n_step)
    streams = [random_stream(spec, env, 200, rng) for env in range(3)]
    accumulator = agent.accumulator(3, chunk_length)
    chunks = feed(accumulator, streams)
    assert all(len(chunk) == chunk_length for chunk in chunks)
    chunks += accumulator.flush()
    assert_matches_oracle(agent, chunks, streams)
    if spec.frame_stack:
        for chunk in chunks:
            # The random frames all differ: if no two blocks are equal, each frame is stored once.
            edges = np.cumsum(chunk.frames.frame_lengths)[:-1]
            blocks = np.split(np.frombuffer(chunk.frames.blob, dtype=np.uint8), edges)
            assert len({block.tobytes() for block in blocks}) == len(blocks)
            assert chunk.frames.first_frame[0] == 0


def test_random_streams_contain_every_kind_of_end():
    """Guards the test above: its data must reach what it claims to test."""
    rng = np.random.default_rng(0)
    stream = random_stream(SPECS["vectors"], 0, 400, rng)
    kinds = {(r.terminated, r.truncated, r.life_lost, r.ignored) for r in stream}
    assert kinds == {
        (False, False, False, False), (True, False, False, False), (False, True, False, False),
        (False, True, True, False), (False, False, True, False), (False, False, False, True),
    }  # fmt: skip
    starts = [i for i, r in enumerate(stream) if r.ignored]
    assert any(b - a == 2 for a, b in itertools.pairwise(starts)), "an episode of a single step"


def episode(
    rewards: list[float], end: str = "", lost_after: int | None = None, after: int = 0
) -> list[Record]:
    """An episode with observations 0, 1, 2, ..., its ignored step, and `after` steps more."""
    records = []
    for t, reward in enumerate([*rewards, *([0.0] * (bool(end) + after))]):
        last = t == len(rewards) - 1
        observation = np.array([float(t)], dtype=np.float32)
        records.append(
            Record(
                observation, observation, t, reward,
                terminated=last and end == "terminated", truncated=last and end == "truncated",
                life_lost=t == lost_after, ignored=bool(end) and t == len(rewards),
                q_value=0.0, max_q=0.0,
            )
        )  # fmt: skip
    return records


def items_of(records: list[Record], n_step: int = 3, gamma: float = 0.5) -> list[tuple]:
    """(observation, n-step return, discount, next observation) of each finished item."""
    accumulator = algorithm(SPECS["vectors"], n_step, gamma).accumulator(1, 1000)
    feed(accumulator, [records])
    (chunk,) = accumulator.flush()
    names = ("observation", "n_step_return", "discount", "next_observation")
    return list(zip(*(chunk.columns[name].ravel().tolist() for name in names)))


def test_terminated_zeroes_the_discount_of_every_window_that_reaches_it():
    assert items_of(episode([1, 2, 4, 8], "terminated")) == [
        (0.0, 3.0, 0.125, 3.0),  # 1 + 2/2 + 4/4, bootstraps from s_3 with gamma^3
        (1.0, 6.0, 0.0, 4.0),
        (2.0, 8.0, 0.0, 4.0),
        (3.0, 8.0, 0.0, 4.0),
    ]


def test_truncated_bootstraps_from_the_last_observation_with_gamma_to_the_k():
    assert items_of(episode([1, 2, 4, 8], "truncated")) == [
        (0.0, 3.0, 0.125, 3.0),
        (1.0, 6.0, 0.125, 4.0),
        (2.0, 8.0, 0.25, 4.0),
        (3.0, 8.0, 0.5, 4.0),
    ]


def test_terminated_and_truncated_at_once_is_a_termination():
    records = episode([1, 2], "terminated")
    records[1].truncated = True
    assert items_of(records) == [(0.0, 2.0, 0.0, 2.0), (1.0, 2.0, 0.0, 2.0)]


def test_window_longer_than_every_episode_stops_at_each_end():
    ends = ([1, 2, 4], "truncated"), ([8], "terminated"), ([16, 32], "truncated")
    records = [record for end in ends for record in episode(*end)]
    assert items_of(records, n_step=10) == [
        (0.0, 3.0, 0.125, 3.0),
        (1.0, 4.0, 0.25, 3.0),
        (2.0, 4.0, 0.5, 3.0),
        (0.0, 8.0, 0.0, 1.0),
        (0.0, 32.0, 0.25, 2.0),
        (1.0, 32.0, 0.5, 2.0),
    ]


def test_lost_life_zeroes_the_discount_and_the_episode_continues():
    assert items_of(episode([1, 2, 4, 8, 16], "truncated", lost_after=1)) == [
        (0.0, 2.0, 0.0, 2.0),
        (1.0, 2.0, 0.0, 2.0),
        (2.0, 12.0, 0.125, 5.0),  # 4 + 8/2 + 16/4
        (3.0, 16.0, 0.25, 5.0),
        (4.0, 16.0, 0.5, 5.0),
    ]


def test_one_step_transitions_have_one_reward_and_gamma():
    assert items_of(episode([1, 2], "truncated"), n_step=1) == [
        (0.0, 1.0, 0.5, 1.0),
        (1.0, 2.0, 0.5, 2.0),
    ]


def test_no_item_is_made_before_its_bootstrap_observation_is_there():
    # Rewards 1 2 4 are there, s_3 is not.
    accumulator = algorithm(SPECS["vectors"], 3).accumulator(1, 1)
    assert feed(accumulator, [episode([1, 2, 4])]) == [] and accumulator.flush() == []


def test_priority_is_the_absolute_td_error_of_the_actors_values():
    records = episode([1, 2], "truncated")
    records[0].q_value, records[1].q_value, records[2].max_q = 10.0, -3.0, 4.0
    accumulator = algorithm(SPECS["vectors"], 2, 0.5).accumulator(1, 100)
    feed(accumulator, [records])
    (chunk,) = accumulator.flush()
    # |1 + 2/2 + 4/4 - 10| and |2 + 4/2 + 3|
    assert chunk.priorities.tolist() == [7.0, 7.0]
    assert chunk.priorities.dtype == np.float64


def test_frames_before_an_episodes_start_are_zero_and_never_stored():
    spec, rng = SPECS["frames"], np.random.default_rng(0)
    agent = algorithm(spec, 1)
    stream = random_stream(spec, 0, 3, rng)
    for record in stream:
        record.terminated = record.truncated = record.life_lost = record.ignored = False
    accumulator = agent.accumulator(1, 100)
    feed(accumulator, [stream])
    (chunk,) = accumulator.flush()
    assert chunk.frames.pad_count.tolist() == [2, 1]
    assert chunk.frames.frame_count.tolist() == [2, 3]
    assert len(chunk.frames.frame_lengths) == 3
    first = collated(agent, chunk)["observation"][0]
    assert not first[:2].any() and (first[2] == stream[0].observation).all()


def test_steps_in_memory_stay_bounded_over_a_long_run():
    # Chunks of 10 of n = 5. The episodes of the second environment have one step and one that is
    # ignored, so it makes half as many transitions; the history of a stack of 3 is 2 frames.
    spec, rng = SPECS["frames"], np.random.default_rng(1)
    accumulator = algorithm(spec, 5).accumulator(2, 10)
    short = random_stream(spec, 1, 3000, rng)
    for number, record in enumerate(short):
        record.ignored, record.life_lost = bool(number % 2), False
        record.terminated, record.truncated = not number % 2, False
    sizes = []
    for row in zip(random_stream(spec, 0, 3000, rng), short):
        feed(accumulator, [[record] for record in row])
        sizes.append(bytes_held(accumulator))
    assert max(sizes[300:]) <= 1.1 * max(sizes[:300])


def test_memory_stays_bounded_when_environments_fail_at_every_first_step():
    # Only ignored steps: no transition, and a stack of 3 needs two earlier frames.
    spec, rng = SPECS["frames"], np.random.default_rng(1)
    accumulator = algorithm(spec, 5).accumulator(1, 10)
    stream = random_stream(spec, 0, 1000, rng)
    for record in stream:
        record.ignored, record.life_lost = True, False
    feed(accumulator, [stream[:10]])
    size = bytes_held(accumulator)
    feed(accumulator, [stream[10:]])
    assert bytes_held(accumulator) <= 1.1 * size and accumulator.flush() == []


def test_frame_stacker_pads_with_zeros_at_each_environments_own_start():
    stacker = FrameStacker(3)

    def push(values: list[int], first: list[bool]) -> list[list[int]]:
        frame = np.array(values, dtype=np.uint8).reshape(2, 1, 1)
        return stacker.push(frame, np.array(first))[:, :, 0, 0].tolist()

    assert push([1, 11], [True, True]) == [[0, 0, 1], [0, 0, 11]]
    assert push([2, 12], [False, False]) == [[0, 1, 2], [0, 11, 12]]
    assert push([3, 13], [True, False]) == [[0, 0, 3], [11, 12, 13]]
    assert push([4, 14], [False, True]) == [[0, 3, 4], [0, 0, 14]]


def test_frame_stacker_holds_the_last_frames_of_each_environment_over_many_steps():
    stacker, depth = FrameStacker(4), 4
    seen: list[list[int]] = [[], []]
    for step in range(1, 120):
        # The first environment begins again each 19 steps, the second each 7.
        first = [step % 19 == 1, step % 7 == 1]
        frame = np.array([step, 128 + step], dtype=np.uint8).reshape(2, 1, 1)
        stacks = stacker.push(frame, np.array(first))[:, :, 0, 0]
        for env in range(2):
            seen[env] = ([] if first[env] else seen[env]) + [128 * env + step]
            last = seen[env][-depth:]
            assert stacks[env].tolist() == [0] * (depth - len(last)) + last


def test_frame_stacker_passes_vectors_through_when_depth_is_zero():
    observations = np.arange(6.0).reshape(2, 3)
    assert FrameStacker(0).push(observations, np.array([True, False])) is observations


def test_frames_of_an_episode_that_was_cut_before_its_first_step_are_in_no_chunk():
    """A fault of one environment cuts the episodes of all, also of those that just began."""
    spec = env_spec((2, 2), stack=2)
    made = algorithm(spec, n_step=1)
    accumulator = made.accumulator(1, chunk_length=4)
    no = np.zeros(1, dtype=np.bool_)
    chunks: list[Chunk] = []
    # Two steps and a cut, a cut at once, two steps and a cut: the frame 40 makes no transition.
    for value, ignored in [(10, False), (20, False), (30, True), (40, True), (50, False),
                           (60, False), (70, True)]:  # fmt: skip
        chunks += accumulator.add(
            VectorStep(
                np.full((1, 2, 2), value, np.uint8), np.array([1]),
                {"q_value": np.zeros(1), "max_q": np.zeros(1)}, np.ones(1), no, no, no,
                np.array([ignored]), 0,
            )
        )  # fmt: skip
    (chunk,) = chunks
    chunk.check(made.schema())
    samples = Samples(np.arange(4), np.ones(4), chunk.columns, chunk.frames)
    items = frame_compression.decompress(samples, made.schema())
    seen = [row[:count, 0, 0].tolist() for row, count in zip(items.frames, items.frame_count)]
    assert seen == [[0, 10, 20], [10, 20, 30], [0, 50, 60], [50, 60, 70]]
