"""An endpoint of central inference and its actors, in one process."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from apex.acting.agent import Agent
from apex.algos.agent_factory import make_agent
from apex.algos.registry import make_algorithm
from apex.daemons.inference import endpoint
from apex.daemons.inference.batched_policy import batched
from apex.daemons.inference.client import ActClient
from apex.daemons.inference.cuda_stream import Stream
from apex.daemons.inference.endpoint import ActEndpoint
from apex.data.chunks import Chunk
from apex.envs.registry import EnvFactory
from apex.envs.spec import StepResult
from tests.support.builders import hello
from tests.support.clock import Clock
from tests.support.services import prepared
from tests.support.statuses import inference_report
from tests.support.waiting import wait_until
from tests.support.walks import ENVS

ONE_STEP = "algorithm.n_step=1"


class Stage:
    """An endpoint and the clients of several actors in one process."""

    def __init__(
        self,
        folder: Path,
        stack: ExitStack,
        *settings: str,
        preset: str = "cartpole",
        make_env: EnvFactory | None = None,
        stream: Stream | None = None,
    ) -> None:
        self.stack = stack
        self.run = prepared(
            folder, f"actor.num_envs={ENVS}", "actor.count=3", "actor.inference=central",
            "inference.max_wait_ms=5", "actor.chunk_length=1", *settings,
            make_env=make_env, preset=preset,
        )  # fmt: skip
        self.config, self.facts = self.run.config(), self.run.facts()
        self.algorithm = make_algorithm(self.config.algorithm, self.facts.env)
        torch.manual_seed(0)
        self.policy = self.algorithm.policy()
        self.batched = batched(self.policy, 256, stream)
        self.clock = Clock()
        self.clients: dict[str, ActClient] = {}
        self.made: list[Agent] = []
        """The agents that the server has made."""
        self.open()

    def open(self, starts: int = 0, max_agents: int = endpoint.MAX_AGENTS) -> None:
        """Start the server, as one that was started `starts` times before."""
        self.acts = ActEndpoint(
            self.run.endpoints().of("inference.act"), self.config, self.facts, self.make_agent,
            status=inference_report, starts=starts, clock=self.clock,
            max_agents=max_agents,
        )  # fmt: skip
        self.stack.callback(self.acts.server.close)

    def make_agent(self, *place: int) -> Agent:
        """Make an agent for the server."""
        self.made.append(make_agent(self.algorithm, self.config, self.policy.core_size, *place))
        return self.made[-1]

    def client(self, name: str, epoch: int = 1) -> ActClient:
        """Connect one more actor."""
        facts = self.facts
        greeting = hello(name, run_id=facts.run_id, schema_hash=facts.schema.hash, epoch=epoch)
        address = self.run.endpoints().of("inference.act")
        client = ActClient(address, greeting, facts.env, self.clock)
        client.start(int(name[-1]), incarnation=0)
        self.stack.callback(client.close)
        self.clients[name] = client
        wait_until(lambda: client.client.ready, turn=self.turn)
        return client

    def turn(self) -> None:
        """Let the server and all clients receive; decide nothing."""
        self.acts.receive()
        for client in self.clients.values():
            client.poll()

    def until_asking(self, actors: int) -> None:
        """Wait until so many actors wait for a batch."""
        wait_until(lambda: self.acts.waiting_envs == actors * ENVS, turn=self.turn)

    def decide(self) -> int:
        """Decide one batch at once, as on a CPU; returns the number of its environments."""
        size = self.begin()
        self.acts.finish()
        return size

    def begin(self) -> int:
        """Begin a batch."""
        return self.acts.begin(self.batched, 7)

    def answered(self, client: ActClient) -> np.ndarray:
        """The answer to an actor's question."""
        wait_until(lambda: client.answered, turn=self.turn)
        return client.take()

    def round(self, client: ActClient) -> np.ndarray:
        """The answer to one actor's question, alone in its batch."""
        self.until_asking(1)
        self.decide()
        return self.answered(client)


def seen(value: float) -> np.ndarray:
    """Observations that are all the same number."""
    return np.full((ENVS, 4), value, np.float32)


def result(value: float, reward: float = 1.0, ended: bool = False) -> StepResult:
    """The result of a step with these observations."""
    flags = np.zeros((3, ENVS), dtype=np.bool_)
    flags[0] = ended
    return StepResult(seen(value), np.full(ENVS, reward), *flags)


def first_observations(chunks: list[Chunk]) -> list[float]:
    """The first number of each chunk's first observation, sorted."""
    return sorted(chunk.columns["observation"][0, 0].item() for chunk in chunks)
