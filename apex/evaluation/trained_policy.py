"""A trained policy for a script: from a checkpoint to actions, and to whole episodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from apex.acting.agent import greedy
from apex.acting.decisions import Decision, Inputs
from apex.acting.loop import ActingLoop, play_episodes
from apex.algos.base import Policy
from apex.algos.registry import make_algorithm
from apex.config import loading
from apex.config.loading import convert
from apex.config.sections import Config, EnvConfig
from apex.data.schema import Array
from apex.envs.registry import make_environments
from apex.errors import UsageError
from apex.networks import parameters
from apex.plugins import NONE, Extensions, with_absolute_paths
from apex.runs import checkpoint
from apex.runs.checkpoint import Checkpoint


def evaluation_env(env: EnvConfig) -> EnvConfig:
    """The environment as it is evaluated: whole episodes and whole rewards."""
    return msgspec.structs.replace(env, life_loss_ends=False, clip_rewards=False)


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

    def begin(self) -> None:
        """The next observations begin episodes: a policy with memory forgets those before."""
        self._decision = None

    def act(self, observations: Array, rewards: npt.ArrayLike = 0.0) -> Array:
        """Greedy actions; a policy with memory goes on from the last call.

        Args:
            observations: `[E, *policy_shape]`, for images the last `frame_stack` frames of each
                environment, oldest first; or one such observation without `E`.
            rewards: `[E]`, of the step before, clipped where `env.clip_rewards`; read by policies
                that see rewards.

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
        return Inputs(
            np.ascontiguousarray(observations),
            last.core_state if last else np.zeros((count, self.policy.core_size), np.float32),
            last.actions if last else self.manifest.env.no_actions(count),
            np.broadcast_to(np.asarray(rewards, dtype=np.float32), count),
        )

    def play(
        self,
        episodes: int,
        seed: int,
        extensions: Extensions = NONE,
        proceed: Callable[[], bool] = lambda: True,
    ) -> list[float]:
        """Returns of greedy whole episodes, unclipped, the same number in each environment."""
        num_envs = next(n for n in range(min(episodes, 8), 0, -1) if episodes % n == 0)
        environments = make_environments(
            evaluation_env(self.config.env), num_envs, extensions.make_env
        )
        try:
            decider = greedy(self.policy, environments.spec, num_envs)
            loop = ActingLoop(environments, decider, seed=seed)
            return play_episodes(loop, num_envs, episodes, proceed) or []
        finally:
            environments.close()


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
