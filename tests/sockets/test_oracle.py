"""The real path from environment to learner, step by step against `tests/support/reference.py`.

An actor steps a scripted environment, its items go over real sockets into the replay server,
the learner learns from batches, and the actor uses the new parameters. The reference gets only the
actions and results of the environment, the first parameters, and the ids that were drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper

from apex.acting.agent import Agent, LocalDecider
from apex.acting.exploration import LadderPlace
from apex.acting.loop import ActingLoop
from apex.algos import apex_dqn, loss_learner, q_learning
from apex.algos.apex_dqn import ApexDQN
from apex.config.loading import parse
from apex.daemons.learner.prefetcher import Batch, prepare
from apex.daemons.replay.client import InsertClient, SampleClient
from apex.daemons.replay.daemon import ReplayServer
from apex.data.chunks import Chunk, Samples
from apex.envs.base import Environments
from apex.ops import double_q_learning as ops
from apex.replay.table.table import TableCounters
from apex.runs.directory import RunFacts
from apex.wire.endpoints import Endpoints, LearnerEndpoints, ReplayEndpoints
from tests.support.batches import arrays_of
from tests.support.batches import learn as one_update
from tests.support.builders import hello
from tests.support.reference import Oracle, Settings, Stream, Transition, q_values
from tests.support.waiting import wait_until

PHASES = ((34, 8), (26, 8), (20, 9))
"""Acting steps, then learner updates; then the actor takes the new parameters."""
BATCH, CHUNK, CAPACITY, ACTIONS = 16, 5, 90, 3
ALPHA = 0.6
CONV = ((4, 3, 1), (6, 2, 2))
GAIN = 2.4
PRESETS_REAL: dict[str, Any] = {
    "standardize_frames": True,
    "hidden": (16,),
    "learning_rate_decay_steps": 12,
    "final_learning_rate_fraction": 0.2,
}
PRESETS_REFERENCE: dict[str, Any] = {"standardize": True, "decay_steps": 12, "final_fraction": 0.2}
Loss = Literal["huber", "squared"]
LIFE, TERMINATED, TRUNCATED, BOTH = "life", "terminated", "truncated", "both"
EPISODES: tuple[tuple[dict[int, str], ...], ...] = (
    ({7: TERMINATED}, {2: TERMINATED}, {9: TRUNCATED}, {1: TRUNCATED}, {1: TERMINATED}, {6: BOTH}),
    ({4: TRUNCATED}, {12: TERMINATED}, {2: TRUNCATED}, {8: TRUNCATED}),
    (
        {1: LIFE, 5: LIFE, 6: LIFE, 12: TERMINATED},
        {4: LIFE, 10: LIFE, 11: TRUNCATED},
        {3: LIFE, 7: LIFE + TRUNCATED},
    ),
)
"""For each environment, repeated: events by step of the episode, from 1."""


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch use one thread: the networks are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Scripted(VectorEnv[Any, Any, Any]):
    """Three environments with fixed frames and episode ends; rewards depend on the action."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    num_envs = len(EPISODES)
    single_observation_space = gym.spaces.Box(0, 255, (6, 6), np.uint8)
    single_action_space = gym.spaces.Discrete(ACTIONS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._rng = np.random.default_rng(seed)
        self._episode = [0] * self.num_envs
        self._age = [0] * self.num_envs
        self._over = [False] * self.num_envs
        self._lives = [9] * self.num_envs
        return self._frames(), {"lives": np.array(self._lives)}

    def _frames(self) -> npt.NDArray[np.uint8]:
        brightness = self._rng.random((self.num_envs, 1, 1))
        return (self._rng.integers(0, 256, (self.num_envs, 6, 6)) * brightness).astype(np.uint8)

    def step(self, actions: Any) -> Any:
        happened = [self._advance(env) for env in range(self.num_envs)]
        rewards = self._rng.uniform(-2.0, 2.5, self.num_envs) + 0.4 * np.asarray(actions)
        rewards[[event is None for event in happened]] = 0.0
        return (
            self._frames(),
            rewards,
            np.array([event in (TERMINATED, BOTH) for event in happened]),
            np.array(
                [event is not None and event.endswith((TRUNCATED, BOTH)) for event in happened]
            ),
            {"lives": np.array(self._lives)},
        )

    def _advance(self, env: int) -> str | None:
        """The event of this step; None: the step only begins a new episode."""
        if self._over[env]:
            self._over[env], self._age[env], self._lives[env] = False, 0, 9
            self._episode[env] += 1
            return None
        self._age[env] += 1
        script = EPISODES[env][self._episode[env] % len(EPISODES[env])]
        event = script.get(self._age[env], "")
        self._lives[env] -= event.startswith(LIFE)
        self._over[env] = self._age[env] == max(script)
        return event


class Recorder(VectorWrapper):
    """Keeps copies of all actions and results of the environments."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        super().__init__(env)
        self._seen: list[list[npt.NDArray[Any]]] = [[] for _ in range(6)]

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        observations, info = self.env.reset(seed=seed)
        self._keep(observations, info, ())
        return observations, info

    def step(self, actions: Any) -> Any:
        observations, rewards, terminated, truncated, info = self.env.step(actions)
        self._keep(observations, info, (actions, rewards, terminated, truncated))
        return observations, rewards, terminated, truncated, info

    def _keep(self, observations: Any, info: Any, rest: Sequence[Any]) -> None:
        for kept, array in zip(self._seen, (observations, info["lives"], *rest)):
            kept.append(np.array(array))

    def stream(self) -> Stream:
        """Everything recorded so far."""
        observations, lives, actions, rewards, terminated, truncated = map(np.array, self._seen)
        return Stream(observations, actions, rewards, terminated, truncated, lives)


class Real:
    """The real actor, replay server and learner, run in turns in one process."""

    def __init__(self, folder: Path, stack: ExitStack, algorithm: ApexDQN.Config) -> None:
        self.recorder = Recorder(Scripted())
        environments = Environments(self.recorder, "Scripted-v0", 4, life_loss_ends=True)
        self.algorithm = ApexDQN(algorithm, environments.spec)
        torch.manual_seed(0)  # with this seed float32 rounding flips no ReLU and no argmax
        self.learner = self.algorithm.learner(torch.device("cpu"))
        fresh = (
            self.learner.network.state_dict()
        )  # no biases and large weights: Q depends on the frames
        self.learner.load_parameters({k: GAIN * v * (v.dim() > 1) for k, v in fresh.items()})
        self.policy = self.algorithm.policy()
        self._open_replay(folder, stack)
        num_envs = environments.num_envs
        seeds = [(5, 0, env) for env in range(num_envs)]
        self.agent = Agent(
            environments.spec,
            num_envs,
            self.policy.core_size,
            exploration=self.algorithm.exploration(
                LadderPlace(np.arange(float(num_envs)), num_envs, seeds)
            ),
            accumulator=self.algorithm.accumulator(num_envs, CHUNK),
            clip_rewards=True,
        )
        self.decider = LocalDecider(self.policy, self.agent)
        self.loop = ActingLoop(environments, self.decider, seed=1)
        self.publish(0)

    def _open_replay(self, folder: Path, stack: ExitStack) -> None:
        endpoints = Endpoints(
            ReplayEndpoints(f"ipc://{folder}/i", f"ipc://{folder}/s"),
            LearnerEndpoints(f"ipc://{folder}/p"),
        )
        raw = {
            "env": {"id": "Scripted-v0"},
            "algorithm": {"name": "apex_dqn"},
            "actor": {"chunk_length": CHUNK},
            "learner": {"batch_size": BATCH, "prefetch": 1},
            "replay": {"capacity": CAPACITY, "min_size": BATCH, "priority_exponent": ALPHA},
        }
        schema = self.algorithm.schema()
        facts = RunFacts("run", self.algorithm.spec, schema)
        self.server = ReplayServer(
            parse(raw), endpoints, facts, folder / "replay", clock_ns=lambda: 0
        )
        stack.callback(self.server.close)
        actor = hello(schema_hash=schema.hash)
        self.inserter = InsertClient(endpoints.of("replay.insert"), actor)
        stack.callback(self.inserter.close)
        learner = hello("learner", "learner", schema_hash=schema.hash)
        self.sampler = SampleClient(endpoints.of("replay.sample"), learner, BATCH)
        stack.callback(self.sampler.close)
        self._batches: list[Samples] = []
        self._priorities_sent = 0

    def _until(self, condition: Callable[[], object]) -> None:
        wait_until(condition, turn=self._turn)

    def _turn(self) -> None:
        self.server.turn(0.001)
        self.inserter.poll()
        self._batches += self.sampler.poll()

    def publish(self, learner_step: int) -> None:
        """Load the learner's parameters into the actor's policy."""
        self.policy.load(self.learner.network.state_dict())
        self.decider.learner_step = learner_step

    def insert(self, sent: Sequence[Chunk]) -> None:
        """Insert chunks, and wait until they are in the table."""
        for chunk in sent:
            self._until(lambda: self.inserter.has_credit)
            self.inserter.insert(chunk)
        self._until(lambda: self.inserter.unacknowledged == 0)

    def sample(self) -> Samples:
        """The next batch."""
        self._until(lambda: self.sampler.client.ready)
        self.sampler.ask(1)
        self._until(lambda: self._batches)
        return self._batches.pop()

    def update_priorities(self, ids: Any, priorities: Any) -> None:
        """Send priorities, and wait until the table has processed them."""
        self.sampler.update_priorities(ids, priorities)
        self._priorities_sent += len(ids)
        counters = self.server.table.counters
        self._until(
            lambda: counters.updated_priorities + counters.stale_priorities == self._priorities_sent
        )

    def table(self) -> tuple[Samples, npt.NDArray[np.float64]]:
        """All items of the table by id, and their masses."""
        table = self.server.table
        state = table.state()
        columns, ranges = table.contents(state.item_ids)
        masses = state.priorities**ALPHA
        return Samples(state.item_ids, masses / masses.sum(), columns, ranges), masses

    def decode(self, samples: Samples) -> Batch:
        """The batch for the update."""
        return prepare(samples, self.algorithm.schema(), self.algorithm.collate)


Calls = dict[str, list[tuple[tuple[Any, ...], torch.Tensor]]]


def recorded(monkeypatch: pytest.MonkeyPatch, *names: str) -> Calls:
    """Arguments and results of each call that the learner makes of these functions."""
    calls: Calls = {name: [] for name in names}

    def record(name: str, function: Callable[..., torch.Tensor]) -> None:
        def recording(*arguments: Any) -> torch.Tensor:
            result = function(*arguments)
            calls[name].append((arguments, result.detach().clone()))
            return result

        for module in (apex_dqn, q_learning, loss_learner):
            if name in vars(module):
                monkeypatch.setattr(module, name, recording)

    for name in names:
        record(name, getattr(ops, name))
    return calls


def close(real: Any, reference: Any, what: str, rtol: float = 1e-5, atol: float = 2e-6) -> None:
    """Fail unless the real numbers equal the reference's within float32 rounding."""
    np.testing.assert_allclose(real, reference, rtol, atol, err_msg=what)


def check_items(real: Real, oracle: Oracle, samples: Samples, items: list[Transition]) -> None:
    """Compare every pixel and number of some items, as the learner would get them."""
    batch = real.decode(samples)
    assert batch.item_ids.tolist() == samples.item_ids.tolist()
    arrays = arrays_of(batch.data)
    np.testing.assert_array_equal(arrays["observation"], [item.first for item in items])
    for item, bootstrap in zip(items, arrays["next_observation"], strict=True):
        if item.discount > 0:  # other bootstrap observations are unused
            np.testing.assert_array_equal(bootstrap, item.bootstrap)
    assert arrays["action"].tolist() == [item.action for item in items]
    for name in ("n_step_return", "discount"):
        close(arrays[name], [getattr(item, name) for item in items], name, 0.0, 1e-6)
    steps = [oracle.learner_steps[item.start] for item in items]
    assert batch.learner_steps.tolist() == steps


def act(real: Real, oracle: Oracle, steps: int) -> None:
    """Act and insert, or with no steps insert what is left; compare every chunk, then the table."""
    for _ in range(steps):
        real.loop.step()
    sent = real.agent.take_chunks() if steps else real.agent.flush()
    oracle.act(steps)
    expected = oracle.insert(real.recorder.stream(), flush=not steps)
    assert [len(chunk) for chunk in sent] == [len(items) for items, _ in expected]
    for chunk, (items, priorities) in zip(sent, expected):
        ids, ones = np.arange(len(chunk)), np.ones(len(chunk))
        check_items(real, oracle, Samples(ids, ones, chunk.columns, chunk.frames), items)
        close(chunk.priorities, priorities, "initial priorities")
    real.insert(sent)
    check_table(real, oracle)


def check_table(real: Real, oracle: Oracle) -> None:
    """Compare the whole table: ids, contents and priorities."""
    samples, masses = real.table()
    assert samples.item_ids.tolist() == list(oracle.table.masses)
    check_items(real, oracle, samples, [oracle.items[i] for i in oracle.table.masses])
    expected = np.array(list(oracle.table.masses.values()))
    root = (
        1.0 / oracle.settings.alpha
    )  # compare p instead of p^alpha, in which rounding weighs more near 0
    close(masses**root, expected**root, "priorities in the table")


def learn(real: Real, oracle: Oracle, calls: Calls) -> tuple[Any, Any]:
    """Draw a batch and learn from it, and compare; gives its ids and new priorities."""
    samples = real.sample()
    ids = samples.item_ids.tolist()
    for k, (low, high) in enumerate(map(oracle.table.interval, ids)):  # each from its stratum
        assert low < (k + 1) / BATCH + 1e-5 and high > k / BATCH - 1e-5
    priorities, metrics = one_update(real.learner, real.decode(samples).data)
    update, probabilities = oracle.learn(ids)
    check_items(real, oracle, samples, [oracle.items[i] for i in ids])
    close(samples.probabilities, probabilities, "P(i)", atol=0.0)
    (q_tm1, a_tm1, *_), td_errors = calls["double_q_td_error"][-1]
    close(calls["importance_weights"][-1][1], update.weights, "weights")
    close(td_errors + q_tm1.detach()[range(BATCH), a_tm1], update.targets, "targets")
    close(td_errors, update.td_errors, "TD errors")
    close(priorities, np.abs(update.td_errors), "new priorities")
    name = "huber_loss" if oracle.settings.huber else "squared_loss"
    close(calls[name][-1][1], update.losses, "losses")
    close(metrics["loss"], update.loss, "loss")
    close(metrics["gradient_norm"], update.gradient_norm, "gradient norm")
    return samples.item_ids, priorities


def run(real: Real, oracle: Oracle, calls: Calls) -> None:
    """Run all phases. The last priorities of a phase arrive after the next phase's inserts."""
    late = None
    for steps, updates in (*PHASES, (0, 1)):
        act(real, oracle, steps)
        for _ in range(updates):
            if late is not None:
                real.update_priorities(*late)
                oracle.table.update(late[0].tolist(), np.abs(oracle.updates[-1].td_errors).tolist())
            late = learn(real, oracle, calls)
        check_table(real, oracle)
        real.publish(oracle.learner.updates)
    for name, tensor in real.learner.network.state_dict().items():
        close(tensor, oracle.learner.online[name], name)


def check_everything_happened(oracle: Oracle, stream: Stream, counters: TableCounters) -> None:
    """Assert that the run covered every case that it is meant to compare."""
    n = oracle.settings.n
    lengths = [len(episode) for env in range(3) for episode in stream.episodes(env)[:-1]]
    assert (min(lengths) < n or n == 1) and max(lengths) > n
    assert stream.terminated.any() and (stream.truncated & ~stream.terminated).any()
    assert (stream.lives[1:] < stream.lives[:-1]).any()
    assert (stream.rewards > 1).any() and (stream.rewards < -1).any()
    assert {item.discount > 0 for item in oracle.items} == {True, False}
    assert oracle.table.evicted == counters.evicted > 0 and counters.stale_priorities > 0
    assert len(set(oracle.drawn)) < len(oracle.drawn)
    assert sum(update.copied for update in oracle.updates) >= 4
    deltas = np.abs([update.td_errors for update in oracle.updates])
    assert (deltas < 1).any() and (deltas > 1).any()
    assert oracle.learner.disagreements > 0
    most = oracle.settings.max_gradient_norm
    assert {update.gradient_norm > most for update in oracle.updates} == {True, False}
    assert chose_greedily(oracle, 0) == {True, False} and chose_greedily(oracle, 2) == {True}


def chose_greedily(oracle: Oracle, env: int) -> set[bool]:
    """Whether actions of one environment had the highest Q: a set of one or both truth values."""
    items = [item for item in oracle.items if item.env == env]
    q = [q_values(oracle.acted[i.start], i.first[None], oracle.settings)[0] for i in items]
    return {int(values.argmax()) == item.action for values, item in zip(q, items)}


def same_settings(
    n: int, loss: Loss, max_gradient_norm: float, as_presets: bool
) -> tuple[ApexDQN.Config, Settings]:
    """Settings of the real path and of the reference: the paper's, or the Pong presets'."""
    real, reference = (PRESETS_REAL, PRESETS_REFERENCE) if as_presets else ({}, {})
    config = ApexDQN.Config(
        n_step=n, discount=0.99, loss=loss, max_gradient_norm=max_gradient_norm,
        optimizer="adam", learning_rate=0.002, optimizer_epsilon=0.001, target_update_period=5,
        importance_sampling_exponent=0.4, conv=CONV, stream_hidden=(16,),
        **real,
    )  # fmt: skip
    settings = Settings(
        n=n, gamma=0.99, huber=loss == "huber", max_gradient_norm=max_gradient_norm,
        learning_rate=0.002, adam_epsilon=0.001, target_update_period=5,
        alpha=ALPHA, beta=0.4, capacity=CAPACITY, stack=4, strides=tuple(s for _, _, s in CONV),
        **reference,
    )  # fmt: skip
    return config, settings


@pytest.mark.parametrize(
    ("n", "loss", "max_gradient_norm", "as_presets"),
    [
        (3, "huber", 0.9, False),
        (3, "squared", 1.2, False),
        (1, "squared", 0.6, False),
        (5, "huber", 0.9, False),
        (3, "huber", 0.9, True),
    ],
)
@pytest.mark.usefixtures("one_thread")
def test_real_path_equals_the_reference(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    n: int,
    loss: Loss,
    max_gradient_norm: float,
    as_presets: bool,
) -> None:
    config, settings = same_settings(n, loss, max_gradient_norm, as_presets)
    calls = recorded(monkeypatch, "double_q_td_error", "importance_weights", f"{loss}_loss")
    with ExitStack() as stack:
        real = Real(tmp_path, stack, config)
        parameters = real.learner.network.state_dict()
        start = {name: tensor.double() for name, tensor in parameters.items()}
        oracle = Oracle(settings, start, CHUNK)
        run(real, oracle, calls)
        check_everything_happened(oracle, real.recorder.stream(), real.server.table.counters)
