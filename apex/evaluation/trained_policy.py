"""Load a trained policy from a checkpoint, to compute actions or play whole episodes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from apex.acting.agent import greedy
from apex.acting.decisions import Decision, Inputs, seen_rewards
from apex.acting.episodes import Episode
from apex.acting.exploration import evaluation_seed
from apex.acting.loop import ActingLoop, play_episodes
from apex.algos.policy import Policy
from apex.algos.registry import make_algorithm
from apex.algos.restoring import load_parameters
from apex.config import loading
from apex.config.conversion import convert
from apex.config.sections import Config
from apex.data.observations import Observations, map_arrays
from apex.data.observations import count as rows_of
from apex.data.schema import Array
from apex.envs.activity import Activity, announced
from apex.envs.recreation import close
from apex.envs.registry import evaluation_factory, make_environments
from apex.envs.spec import EnvSpec
from apex.errors import EnvError, UsageError
from apex.plugins import NONE, Extensions, with_absolute_paths
from apex.runs import checkpoint
from apex.runs.checkpoint import Checkpoint

Which: TypeAlias = int | bool | Sequence[int] | Sequence[bool] | npt.NDArray[Any]
"""A choice of environments: their indices, or a mask."""


def as_in_training(config: Config) -> Config:
    """A configuration without `[evaluator.env]`: it evaluates in the environment of training."""
    evaluator = msgspec.structs.replace(config.evaluator, env={})
    return msgspec.structs.replace(config, evaluator=evaluator)


class TrainedPolicy:
    """A greedy policy with the parameters of a checkpoint.

    Args:
        source: the checkpoint.
        extensions: has the run's algorithm, if that came from a script.
        settings: settings as of `--set` that override the run's configuration, such as the new
            path of a file.
    """

    def __init__(
        self, source: Checkpoint, extensions: Extensions = NONE, settings: Sequence[str] = ()
    ) -> None:
        self.manifest = source.manifest
        raw = loading.override(source.manifest.config, settings)
        self.config = with_absolute_paths(convert(raw, Config, str(source.path)))
        algorithm = make_algorithm(
            self.config.algorithm, self.manifest.env, extensions.algorithm, env=self.config.env
        )
        self.policy: Policy = algorithm.policy()
        load_parameters(self.policy, source, "the policy")
        self._decision: Decision | None = None
        """Decision of the last call of `act`; None after `begin`."""
        self._begun: npt.NDArray[np.bool_] = np.zeros(0, np.bool_)
        """`[E]`, whether an episode has begun since the last call of `act`."""

    def begin(self, which: Which | None = None) -> None:
        """Reset the policy's memory, as the next observations begin new episodes.

        Call it after the step that ended an episode and before `act` sees the first observation
        of the next one.

        Args:
            which: the environments that begin an episode: indices, or a mask `[E] bool` such as
                `terminated | truncated`; None: all.

        Raises:
            UsageError: an environment of `which` does not exist.
        """
        if which is None or self._decision is None:
            self._decision = None
            return
        self._begun |= _mask(which, len(self._begun))

    def act(self, observations: Observations, rewards: npt.ArrayLike = 0.0) -> Array:
        """Compute greedy actions; a policy with memory continues from the last call.

        Args:
            observations: `[E, *policy_shape]`; for images, the last `frame_stack` frames of each
                environment, oldest first. A single observation may omit `E`. An observation of
                parts is a dictionary of such arrays by name, with the part `action_mask` if the
                environment has action masks.
            rewards: `[E]`, unclipped rewards of the step before. A policy that reads rewards sees
                them clipped if `env.clip_rewards` is set, and 0 where an episode begins.

        Returns:
            `[E, *action shape]`, int64 or float32 as the environment takes them, or one action.
        """
        batch, single = self._batch(observations)
        self._decision = self.policy.act(self._inputs(batch, rewards), None)
        actions = self._decision.actions
        self._begun = np.zeros(len(actions), np.bool_)
        return actions[0] if single else actions

    def _batch(self, observations: Observations) -> tuple[Observations, bool]:
        """The observations of E environments, and whether they were given for one, without E."""
        spec = self.manifest.env
        if not spec.parts:
            array, single = _rows(observations, spec.observation_dtype, spec.policy_shape, "")
            return array, single
        names = {part.name for part in spec.parts}
        if not isinstance(observations, dict) or observations.keys() != names:
            given = sorted(observations) if isinstance(observations, dict) else "an array"
            raise UsageError(
                f"expected a dictionary of the observation's parts {sorted(names)}, got {given}"
            )
        batch, singles, counts = {}, set(), set()
        for part in spec.parts:
            stack = (spec.frame_stack,) if part.kind == "image" else ()
            array, single = _rows(
                observations[part.name], part.dtype, (*stack, *part.shape), f" '{part.name}'"
            )
            if part.kind != "image" and part.invalid(array).any():
                raise UsageError(
                    f"expected observations '{part.name}' with choices that exist, or a mask that "
                    f"allows an action, got {array[part.invalid(array)][0].tolist()}"
                )
            batch[part.name] = array
            singles.add(single)
            counts.add(len(array))
        if len(singles) != 1 or len(counts) != 1:
            raise UsageError("expected all parts of an observation for the same environments")
        return batch, singles.pop()

    def _inputs(self, observations: Observations, rewards: npt.ArrayLike) -> Inputs:
        count, last = rows_of(observations), self._decision
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
        return Inputs(
            map_arrays(np.ascontiguousarray, observations), core_state, last_actions, last_rewards
        )

    def check_fits(self, spec: EnvSpec) -> None:
        """Raise `EnvError` unless an environment has the observations and actions of training."""
        own = self.manifest.env
        seen, trained = spec.observations_text, own.observations_text
        alike = seen == trained and spec.actions_text == own.actions_text
        if not alike or (spec.parts, spec.frame_stack) != (own.parts, own.frame_stack):
            raise EnvError(
                f"{spec.env_id} has observations {seen} and {spec.actions_text}, but the policy "
                f"was trained on {own.env_id} with {trained} and {own.actions_text}; evaluate it "
                f"on an environment like that one ({', '.join(spec.differences(own))})"
            )

    def play(self, episodes: int, seed: int, extensions: Extensions = NONE) -> list[float]:
        """Play whole greedy episodes as `play_episodes` does; return their unclipped returns."""
        played = self.play_episodes(episodes, seed, extensions)
        return [episode.episode_return for episode in played]

    def play_episodes(
        self,
        episodes: int,
        seed: int,
        extensions: Extensions = NONE,
        *,
        training_env: bool = False,
    ) -> list[Episode]:
        """Play whole greedy episodes, equally many in each environment.

        Args:
            episodes: number of episodes.
            seed: seed of the environments, at least 0.
            extensions: has the run's environment, if that came from a script.
            training_env: play in the environment of training, without `[evaluator.env]`.

        Returns:
            For each episode its `episode_return`, unclipped, and in `metrics` the scalars of `info`
            at its last step: `success` and the names in `env.metrics`.
        """
        num_envs = next(n for n in range(min(episodes, 8), 0, -1) if episodes % n == 0)
        config = as_in_training(self.config) if training_env else self.config
        activity, env = Activity(), config.evaluation_env
        factory = evaluation_factory(config, extensions.make_env)
        with announced(activity):
            environments = make_environments(env, num_envs, factory, activity=activity)
            try:
                self.check_fits(environments.spec)
                decider = greedy(self.policy, environments.spec, env, num_envs)
                loop = ActingLoop(environments, decider, seed=evaluation_seed(seed))
                return play_episodes(loop, num_envs, episodes, lambda: True) or []
            finally:
                close(environments)


def _rows(values: Any, dtype: str, shape: tuple[int, ...], name: str) -> tuple[Array, bool]:
    """An array `[E, *shape]`, and whether it was given without E. Raises `UsageError`."""
    array = np.asarray(values, dtype=dtype)
    single = array.shape == shape
    if not single and array.shape[1:] != shape:
        raise UsageError(f"expected observations{name} {('E', *shape)}, got {array.shape}")
    return (array[None] if single else array), single


def _mask(which: Which, count: int) -> npt.NDArray[np.bool_]:
    """Convert a choice of environments to a mask `[count]`. Raises `UsageError`."""
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
        f"begin: expected indices of environments from 0 to {count - 1} or a mask of {count} "
        f"booleans, got {which!r}"
    )


def load_policy(path: Path | str, settings: Sequence[str] = ()) -> TrainedPolicy:
    """Load the policy of a checkpoint, or of a run's best checkpoint.

    Args:
        path: directory of a checkpoint or a run.
        settings: settings as of `--set` that override the run's configuration, such as
            `algorithm.name=new/path/of/my_algorithm.py:Class`.

    Raises:
        CheckpointError: there is no checkpoint, or it is corrupt.
        ConfigError: the algorithm is not found.
    """
    return TrainedPolicy(checkpoint.find(Path(path)), settings=settings)
