"""A trained policy for a script: from a checkpoint to actions, and to whole episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from apex.acting.agent import greedy
from apex.acting.decisions import Decision, Inputs, seen_rewards
from apex.acting.exploration import evaluation_seed
from apex.acting.loop import ActingLoop, play_episodes
from apex.algos.base import Policy
from apex.algos.registry import make_algorithm
from apex.config import loading
from apex.config.conversion import convert
from apex.config.sections import Config, EnvConfig
from apex.data.schema import Array
from apex.envs.registry import make_environments
from apex.errors import UsageError
from apex.networks import parameters
from apex.plugins import NONE, Extensions, with_absolute_paths
from apex.runs import checkpoint
from apex.runs.checkpoint import Checkpoint

Which: TypeAlias = int | bool | Sequence[int] | Sequence[bool] | npt.NDArray[Any]
"""Some of the environments: their numbers, or a mask."""


def evaluation_env(env: EnvConfig) -> EnvConfig:
    """The environment as it is evaluated: a lost life ends nothing.

    Rewards need no change: environments give them whole, and returns are sums of those;
    `env.clip_rewards` says what a policy sees of them, here as in the actors.
    """
    return msgspec.structs.replace(env, life_loss_ends=False)


class TrainedPolicy:
    """A greedy policy with the parameters of a checkpoint.

    Args:
        source: the checkpoint.
        extensions: where a script brought the run's algorithm.
        settings: like `--set`, over the run's configuration: where its files are now, say.
    """

    def __init__(
        self, source: Checkpoint, extensions: Extensions = NONE, settings: Sequence[str] = ()
    ) -> None:
        self.manifest = source.manifest
        raw = loading.override(source.manifest.config, settings)
        self.config = with_absolute_paths(convert(raw, Config, str(source.path)))
        algorithm = make_algorithm(self.config.algorithm, self.manifest.env, extensions.algorithm)
        self.policy: Policy = algorithm.policy()
        self.policy.load(parameters.decode(source.parameters()))
        self._decision: Decision | None = None
        """Of the last call, of each environment."""
        self._begun: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        """`[E]`, where an episode has begun since."""

    def begin(self, which: Which | None = None) -> None:
        """The next observations begin episodes: a policy with memory forgets those before.

        Args:
            which: the environments in which they do: their numbers, or a mask `[E] bool` such as
                `terminated | truncated`; None: all. Call it after the step that ended an episode
                and before `act` sees the first observation of the next one.

        Raises:
            UsageError: there are no such environments.
        """
        if which is None or self._decision is None:
            self._decision = None
            return
        self._begun |= _mask(which, len(self._begun))

    def act(self, observations: Array, rewards: npt.ArrayLike = 0.0) -> Array:
        """Greedy actions; a policy with memory goes on from the last call.

        Args:
            observations: `[E, *policy_shape]`, for images the last `frame_stack` frames of each
                environment, oldest first; or one such observation without `E`.
            rewards: `[E]`, of the step before, as the environments gave them; a policy that reads
                rewards sees them clipped where `env.clip_rewards`, and 0 where an episode begins.

        Returns:
            `[E, *action shape]`, int64 or float32 as the environment takes them, or one action.
        """
        observations = np.asarray(observations, dtype=self.manifest.env.observation_dtype)
        shape = self.manifest.env.policy_shape
        single = observations.shape == shape
        if not single and observations.shape[1:] != shape:
            raise UsageError(f"expected observations {('E', *shape)}, got {observations.shape}")
        batch = observations[None] if single else observations
        self._decision = self.policy.act(self._inputs(batch, rewards), None)
        actions = self._decision.actions
        self._begun = np.zeros(len(actions), np.bool_)
        return actions[0] if single else actions

    def _inputs(self, observations: Array, rewards: npt.ArrayLike) -> Inputs:
        count, last = len(observations), self._decision
        if last is not None and len(last.actions) != count:
            if self.policy.core_size:
                raise UsageError(
                    f"expected observations of {len(last.actions)} environments as before, got "
                    f"{count}; call begin() first"
                )
            last = None
        core_state = np.zeros((count, self.policy.core_size), np.float32)
        last_actions = self.manifest.env.no_actions(count)
        last_rewards = np.zeros(count, np.float32)
        if last is not None:
            given = np.broadcast_to(np.asarray(rewards, dtype=np.float64), count)
            seen = seen_rewards(given, clip=self.config.env.clip_rewards)
            on = ~self._begun
            core_state[on], last_actions[on] = last.core_state[on], last.actions[on]
            last_rewards[on] = seen[on]
        return Inputs(np.ascontiguousarray(observations), core_state, last_actions, last_rewards)

    def play(
        self,
        episodes: int,
        seed: int,
        extensions: Extensions = NONE,
        proceed: Callable[[], bool] = lambda: True,
    ) -> list[float]:
        """Returns of greedy whole episodes, unclipped, the same number in each environment.

        Args:
            episodes: how many.
            seed: from 0 on; another one has other games.
            extensions: where a script brought the run's environment.
            proceed: asked at each step; nothing is returned when it says no.
        """
        num_envs = next(n for n in range(min(episodes, 8), 0, -1) if episodes % n == 0)
        environments = make_environments(
            evaluation_env(self.config.env), num_envs, extensions.make_env
        )
        try:
            decider = greedy(self.policy, environments.spec, self.config.env, num_envs)
            loop = ActingLoop(environments, decider, seed=evaluation_seed(seed))
            return play_episodes(loop, num_envs, episodes, proceed) or []
        finally:
            environments.close()


def _mask(which: Which, count: int) -> npt.NDArray[np.bool_]:
    """`[count]`, the environments that are meant. Raises `UsageError`."""
    chosen = np.atleast_1d(np.asarray(which))
    mask = np.zeros(count, np.bool_)
    if chosen.dtype == np.bool_ and chosen.shape == (count,):
        return chosen
    if chosen.dtype.kind in "iu" and chosen.ndim == 1 and np.isin(chosen, range(count)).all():
        mask[chosen] = True
        return mask
    if chosen.size == 0:
        return mask
    raise UsageError(
        f"begin: expected numbers of environments from 0 to {count - 1} or a mask of {count} "
        f"truths, got {which!r}"
    )


def load_policy(path: Path | str, settings: Sequence[str] = ()) -> TrainedPolicy:
    """The policy of a checkpoint, or of a run's best one.

    Args:
        path: of a checkpoint or run.
        settings: like `--set`, over the run's configuration, such as
            `algorithm.name=new/place/of/my_algorithm.py:Class`.

    Raises:
        CheckpointError: there is none, or it is corrupt.
        ConfigError: its algorithm is not found.
    """
    return TrainedPolicy(checkpoint.find(Path(path)), settings=settings)
