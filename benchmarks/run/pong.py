"""Pong for all scenarios: recorded transitions, and bare loops that serve as limits."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from gymnasium.vector import AutoresetMode

from apex.acting.agent import Agent, LocalDecider
from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.exploration import Progress
from apex.acting.loop import ActingLoop
from apex.algos.apex_dqn import ApexDQN
from apex.algos.base import Algorithm, Learner
from apex.algos.batches import Transitions, map_tensors
from apex.algos.q_learning import QPolicy
from apex.algos.registry import make_algorithm
from apex.algos.transition_batches import MAX_Q, Q_VALUE
from apex.daemons.learner.device_batches import transfer_to
from apex.daemons.learner.prefetcher import prepare
from apex.daemons.replay.client import InsertClient
from apex.data.chunks import Chunk, Samples
from apex.envs.registry import make_environments
from apex.execution.execution import COMPARED, WARM_UP, Execution, Graphed
from apex.execution.recorders import CudaGraphs
from apex.execution.settings import use_precision
from apex.host import process_tuning
from apex.replay.table.store import Store
from apex.runs.directory import RunDirectory
from apex.wire.messages import Hello
from apex.wire.sockets import Poller
from benchmarks.run.daemons import until
from benchmarks.run.workers import Step

START = Progress(0, 0)
NUM_ENVS = 16
CHUNK_LENGTH = 50


class RandomPolicy(QPolicy):
    """Policy with random actions and no computation."""

    def __init__(self, network: torch.nn.Module, num_actions: int) -> None:
        super().__init__(network)
        self._num_actions = num_actions
        self._rng = np.random.default_rng(1)

    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        num_envs = len(inputs.observations)
        zeros = np.zeros(num_envs)
        actions = self._rng.integers(0, self._num_actions, num_envs)
        return Decision(actions, inputs.core_state, {Q_VALUE: zeros, MAX_Q: zeros + 1.0})


class RandomDQN(ApexDQN):
    """Ape-X DQN whose actors act at random."""

    def policy(self) -> RandomPolicy:
        return RandomPolicy(self.network(), self.spec.num_actions)


def algorithm_of(run: RunDirectory) -> Algorithm:
    """The algorithm of a run."""
    return make_algorithm(run.config().algorithm, run.facts().env)


def record(run: RunDirectory, items: int) -> list[Chunk]:
    """Chunks with at least `items` transitions of random play."""
    config, spec = run.config(), run.facts().env
    algorithm = make_algorithm(config.algorithm, spec, RandomDQN)
    agent = Agent(
        spec,
        NUM_ENVS,
        core_size=0,
        accumulator=algorithm.accumulator(NUM_ENVS, CHUNK_LENGTH),
        clip_rewards=config.env.clip_rewards,
    )
    environments = make_environments(config.env, NUM_ENVS)
    loop = ActingLoop(environments, LocalDecider(algorithm.policy(), agent), seed=1)
    chunks: list[Chunk] = []
    while sum(map(len, chunks)) < items:
        loop.step()
        chunks += agent.take_chunks()
    environments.close()
    return chunks


def samples_of(run: RunDirectory, count: int) -> Samples:
    """A batch of recorded transitions, as the replay server would send it."""
    chunks = record(run, count)
    total = sum(map(len, chunks))
    store, slot = Store(run.facts().schema, total), 0
    for chunk in chunks:
        store.put(np.arange(slot, slot + len(chunk)), chunk)
        slot += len(chunk)
    chosen = np.random.default_rng(1).permutation(total)[:count]
    columns, frames = store.get(chosen)
    return Samples(chosen, np.full(count, 1 / total), columns, frames)


def batch_of(run: RunDirectory, count: int) -> Transitions:
    """A batch ready for an update."""
    samples = samples_of(run, count)
    batch: Transitions = prepare(samples, run.facts().schema, algorithm_of(run).collate).data
    return batch


def packed_batch_of(run: RunDirectory, count: int) -> Any:
    """A batch as it crosses to a GPU."""
    return prepare(samples_of(run, count), run.facts().schema, algorithm_of(run).pack).data


def hello(run: RunDirectory, role: str, name: str) -> Hello:
    """The hello message of a benchmark client."""
    facts = run.facts()
    return Hello(
        role=role, name=name, epoch=1, run_id=facts.run_id, schema_hash=facts.schema.hash, pid=1
    )  # type: ignore[arg-type]


def fill(run: RunDirectory, chunks: list[Chunk], items: int) -> None:
    """Insert the chunks repeatedly until the table has received `items` items."""
    client = InsertClient(run.endpoints().of("replay.insert"), hello(run, "actor", "actor_900"))
    poller, source = Poller(client.client), cycle(chunks)

    def all_taken() -> bool:
        poller.wait(0.05)
        client.poll()
        while client.has_credit and client.inserted_items < items:
            client.insert(next(source))
        return client.inserted_items >= items and not client.unacknowledged

    try:
        until(all_taken, f"{items} items are in the table")
    finally:
        client.close()


def _environments(stack: int) -> AtariVectorEnv:
    environments = AtariVectorEnv(
        "pong", NUM_ENVS, num_threads=1, autoreset_mode=AutoresetMode.NEXT_STEP, stack_num=stack
    )
    environments.reset(seed=1)
    return environments


def bare_stepping(path: Path) -> Step:
    """Step of ALE's vector environment with random actions; counts env steps."""
    environments, rng = _environments(1), np.random.default_rng(1)

    def step() -> float:
        environments.step(rng.integers(0, 6, NUM_ENVS))
        return NUM_ENVS

    return step


def bare_acting(path: Path) -> Step:
    """Step of ALE's frame-stacking vector environment and the run's network; counts env steps."""
    process_tuning.set_up(1)
    environments = _environments(4)
    policy = algorithm_of(RunDirectory(path)).policy()
    observations = environments.reset(seed=1)[0]

    @torch.inference_mode()
    def step() -> float:
        nonlocal observations
        actions = policy.network(torch.from_numpy(observations)).argmax(1).numpy()
        observations = environments.step(actions)[0]
        return NUM_ENVS

    return step


def bare_learner(path: Path, batch_size: int) -> tuple[Learner, Transitions]:
    """The run's learner, and a batch on its device."""
    process_tuning.set_up(1)
    run = RunDirectory(path)
    learner = algorithm_of(run).learner(process_tuning.pick_device(run.config().learner.device))
    batch = batch_of(run, batch_size)
    return learner, map_tensors(batch, lambda tensor: tensor.to(learner.device))


def bare_updating(path: Path, batch_size: int) -> Step:
    """Step of the run's update on one batch, as fast as it can be; counts updates.

    On a GPU the update is replayed as a graph and not waited for: `synchronize` must come last.
    """
    run = RunDirectory(path)
    settings = run.config().learner
    device = process_tuning.pick_device(settings.device)
    if device.type == "cuda":
        process_tuning.set_up(1)
        learner = algorithm_of(run).learner(device)
        learner.precision = use_precision(settings.precision, device)
        batch = transfer_to(device)(packed_batch_of(run, batch_size))
        return unwaited(learner, batch, Graphed(learner, CudaGraphs(device), batch_size))
    learner, batch = bare_learner(path, batch_size)

    def step() -> float:
        learner.learn(batch, START).priorities.cpu()
        return 1

    return step


def unwaited(learner: Learner, batch: Any, execution: Execution) -> Step:
    """Step that begins an update on a batch, and does not wait for it; counts updates.

    Whatever the execution records, it has recorded before the first step.
    """

    def step() -> float:
        learner.learn(batch, START, execution)
        return 1

    for _ in range(WARM_UP + COMPARED + 1):
        step()
    synchronize()
    return step


def synchronize() -> None:
    """Wait until a GPU that this process uses has done what was begun."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
