"""Local inference: choose actions in the actor's process and insert its items into replay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from apex.acting.agent import Agent, LocalDecider
from apex.acting.decisions import exploration_metrics
from apex.acting.lanes import Lanes
from apex.acting.normalization import MomentCollector
from apex.algos.agent_factory import make_agent, make_lanes
from apex.algos.registry import check_schema, make_algorithm
from apex.daemons.learner.client import LearnerClient
from apex.daemons.learner.moment_sender import MomentSender
from apex.daemons.learner.parameter_versions import Publication
from apex.daemons.periodic import Every
from apex.daemons.replay.backlog import Backlog
from apex.daemons.replay.client import InsertClient
from apex.daemons.service import Service
from apex.data.chunks import Chunk
from apex.data.observations import Observations
from apex.data.schema import Array
from apex.envs.spec import StepResult
from apex.host import process_tuning
from apex.networks import parameters
from apex.plugins import Extensions
from apex.wire.client import Client
from apex.wire.messages import Phase


class LocalInference:
    """Chooses actions with a policy in this process, and inserts the resulting items.

    Args:
        service: the actor's.
        extensions: environment and algorithm of a script.
        learner: used to request parameters; `poll` receives them.
        replay: used to insert items; None: create a connection.
    """

    def __init__(
        self,
        service: Service,
        extensions: Extensions,
        learner: LearnerClient,
        replay: InsertClient | None = None,
    ) -> None:
        process_tuning.set_up(service.config.actor.torch_threads)
        facts = service.facts
        self._config = service.config
        self._algorithm = make_algorithm(
            self._config.algorithm, facts.env, extensions.algorithm, env=self._config.env
        )
        check_schema(self._algorithm, facts.schema)
        self._policy = self._algorithm.policy()
        self._learner = learner
        self._replay = replay or InsertClient(
            service.endpoints.of("replay.insert"), service.hello()
        )
        self._collector: MomentCollector | None = None
        self._moments: MomentSender | None = None
        if self._algorithm.normalization is not None:
            self._collector = MomentCollector(self._algorithm.normalization.sizes)
            self._moments = MomentSender(learner, self._collector)
        self._decider: LocalDecider | None = None
        self._lanes: Lanes | None = None
        """Decides in place of `_decider` with `actor.async_envs`."""
        self._backlog = Backlog(self._replay)
        self._steps_to_refresh = 0
        """Environment steps until the next request for parameters."""
        self._refresh_due = Every(service.config.actor.parameter_period_s, at_once=True)
        self.learner_step = 0
        """Learner step of the parameters in use."""

    @property
    def client(self) -> Client:
        """The connection that `poll` reads."""
        return self._replay.client

    @property
    def agent(self) -> Agent:
        """The agent, which exists after `start`."""
        assert self._decider is not None
        return self._decider.agent

    @property
    def ready(self) -> bool:
        """Whether parameters have been received."""
        if self._learner.param_version < 0:
            self._learner.ask_for_params()
        return self._learner.param_version >= 0

    @property
    def lanes(self) -> Lanes:
        """The decider of environments that step at their own pace; it exists after `start`."""
        assert self._lanes is not None
        return self._lanes

    def start(self, slot: int, incarnation: int) -> str:
        """Create the agent of a slot and incarnation; returns a description of its exploration."""
        if self._config.actor.async_envs:
            agents = make_lanes(
                self._algorithm, self._config, self._policy.core_size, slot, incarnation,
                self._collector,
            )  # fmt: skip
            self._lanes = Lanes(self._policy, agents, self.learner_step, self._on_lane_items)
            return self._lanes.describe()
        agent = make_agent(
            self._algorithm, self._config, self._policy.core_size, slot, incarnation,
            collector=self._collector,
        )  # fmt: skip
        self._decider = LocalDecider(self._policy, agent, self.learner_step)
        return agent.exploration.describe() if agent.exploration else "greedy"

    def _on_lane_items(self, chunks: list[Chunk]) -> None:
        self._backlog.put(chunks)
        if self._refresh_is_due(1):
            self._learner.ask_for_params()

    def begin(self, observations: Observations) -> None:
        """Begin episodes in all environments."""
        assert self._decider is not None
        self._decider.begin(observations)

    def decide(self) -> Array:
        """Return the actions for the latest observations."""
        assert self._decider is not None
        return self._decider.decide()

    def observe(self, result: StepResult) -> None:
        """Process the result of a step; complete items join the backlog."""
        assert self._decider is not None
        self._decider.observe(result)
        self._backlog.put(self._decider.agent.take_chunks())
        if self._refresh_is_due(self._config.actor.num_envs):
            self._learner.ask_for_params()

    def _refresh_is_due(self, env_steps: int) -> bool:
        """Whether to request newer parameters after so many steps of environments."""
        period = self._config.actor.parameter_period
        if not period:
            return self._refresh_due.due()
        self._steps_to_refresh -= env_steps
        due = self._steps_to_refresh <= 0
        if due:
            self._steps_to_refresh = period
        return due

    def cut(self) -> None:
        """Truncate all episodes after the environments have failed."""
        assert self._decider is not None
        self._decider.cut()
        self._backlog.put(self._decider.agent.take_chunks())

    @property
    def waiting(self) -> Phase | None:
        """What the next step waits for, or None."""
        if len(self._backlog) <= self._config.actor.num_envs:
            return None
        return "waiting_for_credit" if self._replay.client.ready else "waiting_for_peer"

    def poll(self, publication: Publication | None) -> None:
        """Load new parameters, process replies of replay and send its backlog; never blocks."""
        if publication is not None:
            self._policy.load(parameters.decode(publication.data))
            self.learner_step = publication.learner_step
            for decider in (self._decider, self._lanes):
                if decider is not None:
                    decider.learner_step = publication.learner_step
        if self._moments is not None:
            self._moments.send()
        self._backlog.send()

    def finish(self, turn: Callable[[], object]) -> None:
        """Send all complete items to replay, and wait briefly for their acknowledgement."""
        if self._decider is not None:
            self._backlog.put(self._decider.agent.flush())
        if self._lanes is not None:
            self._backlog.put(self._lanes.flush())
        if self._moments is not None:
            self._moments.finish()
        self._backlog.drain(turn)

    def metrics(self) -> dict[str, Any]:
        """Metrics of inference, for the actor's metrics file."""
        exploration = self._decider.agent.exploration if self._decider is not None else None
        if self._lanes is not None:
            exploration = self._lanes.exploration()
        return {
            **exploration_metrics(exploration),
            "learner_step": self.learner_step,
            "param_staleness": max(0, self._learner.learner_step - self.learner_step),
            "inserted_items": self._replay.inserted_items,
            "unacknowledged_chunks": self._replay.unacknowledged,
            "backlog_chunks": len(self._backlog),
        }

    def close(self) -> None:
        """Close the connection to replay."""
        self._replay.close()
