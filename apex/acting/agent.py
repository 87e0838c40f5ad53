"""Agents: the state of environments between steps, as a policy sees it, and their items.

An agent needs no environment: it runs in the actor or, with central inference, in the inference
server.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from apex.acting.accumulator import Accumulator, VectorStep
from apex.acting.decisions import ActingPolicy, Decision, Exploration, Inputs, seen_rewards
from apex.acting.frame_stack import Bools, ObservationStacker
from apex.acting.normalization import MomentRecorder
from apex.config.sections import EnvConfig
from apex.data.chunks import Chunk
from apex.data.observations import Observations
from apex.data.schema import Array
from apex.envs.spec import EnvSpec, StepResult


class Agent:
    """The state of E environments between steps, and the items made from their steps.

    Call `begin` or `observe` with the environments' results, pass `inputs` to a policy, then call
    `decide` with its decision.

    Args:
        spec: specification of the environments.
        num_envs: E.
        core_size: numbers in the policy's recurrent state of one environment.
        clip_rewards: `env.clip_rewards` of the run.
        exploration: exploration of these environments; None: act greedily.
        accumulator: makes the items; None: make no items.
        moments: adds what the environments return to the statistics of normalisation; None: does
            not, as in evaluations.
    """

    def __init__(
        self,
        spec: EnvSpec,
        num_envs: int,
        core_size: int,
        *,
        clip_rewards: bool,
        exploration: Exploration | None = None,
        accumulator: Accumulator | None = None,
        moments: MomentRecorder | None = None,
    ) -> None:
        self.num_envs = num_envs
        self._moments = moments
        self.exploration = exploration
        self._accumulator = accumulator
        self._clip_rewards = clip_rewards
        self._stacker = ObservationStacker(spec)
        self._core_size = core_size
        self._no_actions = spec.no_actions(num_envs)
        self._observations: Observations
        self._ignored: Bools
        self._decision: Decision | None = None
        self._learner_step = 0
        self._chunks: list[Chunk] = []
        self.inputs: Inputs

    def begin(self, observations: Observations, ended: Bools | None = None) -> None:
        """Begin episodes in all environments; unfinished ones are truncated.

        Args:
            observations: `[E, *observation_shape]`, or by name.
            ended: `[E] bool`, for environments taken over in mid-run: the observation is the last
                of an episode, and the next step ignores its action.
        """
        self.cut()
        every_env = np.ones(self.num_envs, dtype=np.bool_)
        self._set_inputs(
            observations,
            every_env,
            np.zeros((self.num_envs, self._core_size), np.float32),
            self._no_actions,
            np.zeros(self.num_envs, np.float32),
        )
        self._ignored = ~every_env if ended is None else ended
        if self._moments is not None:
            self._moments.begin(observations)

    def observe(self, result: StepResult) -> None:
        """Add the environments' results of the last decision."""
        decision = self._decision
        assert decision is not None
        rewards = seen_rewards(result.rewards, clip=self._clip_rewards)
        self._add(
            decision, rewards, result.terminated, result.truncated, result.life_lost, self._ignored
        )
        self._decision = None
        # The step after an episode's end ignores its action and returns the first observation of
        # the new episode.
        first = self._ignored
        self._ignored = (result.terminated | result.truncated) & ~first
        if self._moments is not None:
            self._moments.observe(result.observations, rewards, self._ignored, first)
        core_state, last_actions = decision.core_state, decision.actions
        last_rewards = rewards.astype(np.float32)
        if first.any():
            core_state = np.where(first[:, None], np.float32(0), core_state)
            last_actions = np.where(_rowwise(first, last_actions), self._no_actions, last_actions)
            last_rewards = np.where(first, np.float32(0), last_rewards)
        self._set_inputs(result.observations, first, core_state, last_actions, last_rewards)

    def _set_inputs(
        self,
        observations: Observations,
        first: Bools,
        core_state: npt.NDArray[np.float32],
        last_actions: Array,
        last_rewards: npt.NDArray[np.float32],
    ) -> None:
        self._observations = observations
        stacks = self._stacker.push(observations, first)
        self.inputs = Inputs(stacks, core_state, last_actions, last_rewards)

    def decide(self, decision: Decision, learner_step: int) -> Array:
        """Record a policy's decision and return its actions.

        Args:
            decision: the policy's decision for `inputs`.
            learner_step: learner step of the policy's parameters.
        """
        self._decision, self._learner_step = decision, learner_step
        return decision.actions

    def cut(self) -> None:
        """Truncate every episode at its last observation; the decision made there is dropped."""
        decision, self._decision = self._decision, None
        if decision is not None:
            nowhere = np.zeros(self.num_envs, dtype=np.bool_)
            self._add(decision, np.zeros(self.num_envs), nowhere, nowhere, nowhere, ~nowhere)

    def _add(
        self,
        decision: Decision,
        rewards: npt.NDArray[np.float64],
        terminated: Bools,
        truncated: Bools,
        life_lost: Bools,
        ignored: Bools,
    ) -> None:
        if self._accumulator is not None:
            self._chunks += self._accumulator.add(
                VectorStep(
                    self._observations, decision.actions, decision.extras, rewards, terminated,
                    truncated, life_lost, ignored, self._learner_step,
                )
            )  # fmt: skip

    def take_chunks(self) -> list[Chunk]:
        """Return the complete chunks since the last call."""
        chunks, self._chunks = self._chunks, []
        return chunks

    def flush(self) -> list[Chunk]:
        """Return all complete items, in full or partial chunks. Called at shutdown."""
        return self.take_chunks() + (self._accumulator.flush() if self._accumulator else [])


def _rowwise(flags: Bools, values: Array) -> Bools:
    """Reshape `[E]` to `[E, 1, ...]` so that the flags broadcast over the rows of `values`."""
    return flags.reshape(-1, *(1,) * (values.ndim - 1))


class LocalDecider:
    """A decider with the agent and its policy in one process.

    Args:
        policy: chooses the actions.
        agent: the environments' agent.
        learner_step: learner step of the policy's parameters; set it when loading new ones.
    """

    def __init__(self, policy: ActingPolicy, agent: Agent, learner_step: int = 0) -> None:
        self._policy = policy
        self.agent = agent
        self.learner_step = learner_step

    def begin(self, observations: Observations) -> None:
        """Begin episodes in all environments."""
        self.agent.begin(observations)

    def observe(self, result: StepResult) -> None:
        """Add the environments' results."""
        self.agent.observe(result)

    def cut(self) -> None:
        """Truncate all episodes after the environments failed."""
        self.agent.cut()

    def decide(self) -> Array:
        """Choose the actions for the last observations."""
        decision = self._policy.act(self.agent.inputs, self.agent.exploration)
        return self.agent.decide(decision, self.learner_step)


def greedy(policy: ActingPolicy, spec: EnvSpec, env: EnvConfig, num_envs: int) -> LocalDecider:
    """Make a greedy decider without items, with the same inputs as the run's actors.

    Args:
        policy: chooses the actions.
        spec: specification of the environments.
        env: the `[env]` section of the run's configuration.
        num_envs: E.
    """
    agent = Agent(spec, num_envs, policy.core_size, clip_rewards=env.clip_rewards)
    return LocalDecider(policy, agent)
