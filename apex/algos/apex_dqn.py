"""Ape-X DQN (Horgan et al., 2018, arXiv 1803.00933): double, dueling, n-step, prioritized."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from apex.acting.accumulators import NStepAccumulator
from apex.acting.agent import Decision, Exploration, Inputs
from apex.acting.exploration import EpsilonGreedy
from apex.algos.base import Algorithm, BatchArrays, Learner, Policy
from apex.algos.optimization import OptimizerSection
from apex.algos.q_learning import MAX_Q, Q_VALUE, TargetNetworkLearner, ladder_exploration
from apex.config import NonNegativeFloat, PositiveFloat, PositiveInt, UnitFloat
from apex.errors import CorruptItemsError
from apex.networks.dueling import DuelingQNetwork
from apex.ops.q_learning import (
    double_q_td_error,
    huber_loss,
    importance_weights,
    squared_loss,
)
from apex.types import LEARNER_STEP, Array, Arrays, Column, FramesColumn, Items, Schema


class ApexDQNConfig(OptimizerSection, frozen=True):
    """The `[algorithm]` section; the defaults are the paper's."""

    name: str = "apex_dqn"
    n_step: PositiveInt = 3
    discount: UnitFloat = 0.99
    loss: Literal["squared", "huber"] = "squared"
    importance_sampling_exponent: NonNegativeFloat = 0.4
    target_update_period: PositiveInt = 2500
    """Learner steps between two copies of the online to the target network."""
    epsilon: PositiveFloat = 0.4
    epsilon_alpha: NonNegativeFloat = 7.0
    conv: tuple[tuple[PositiveInt, PositiveInt, PositiveInt], ...] = (
        (32, 8, 4),
        (64, 4, 2),
        (64, 3, 1),
    )
    """Output channels, kernel and stride of each convolution; unused without images."""
    standardize_frames: bool = False
    """Each stack of frames gets mean 0 and variance 1; otherwise it is scaled by 1/255. Unused
    without images."""
    hidden: tuple[PositiveInt, ...] = ()
    """Widths of the layers that both dueling streams share."""
    stream_hidden: tuple[PositiveInt, ...] = (512,)
    """Widths of each dueling stream's own layers."""


class ApexDQN(Algorithm):
    """Ape-X DQN for discrete actions and image or vector observations."""

    Config = ApexDQNConfig
    config: ApexDQNConfig

    def schema(self) -> Schema:
        spec, n_step = self.spec, self.config.n_step
        columns = [
            Column("action", "int32"),
            Column("n_step_return", "float32"),
            Column("discount", "float32"),
            Column(LEARNER_STEP, "int64"),
        ]
        if spec.frame_stack:
            frames = FramesColumn(spec.observation_shape, spec.frame_stack + n_step)
            return Schema(tuple(columns), frames)
        for name in ("observation", "next_observation"):
            columns.append(Column(name, spec.observation_dtype, spec.observation_shape))
        return Schema(tuple(columns))

    def accumulator(self, num_envs: int, chunk_length: int) -> NStepAccumulator:
        return NStepAccumulator(
            self.spec,
            num_envs,
            n_step=self.config.n_step,
            discount=self.config.discount,
            chunk_length=chunk_length,
            extra_names=[Q_VALUE, MAX_Q],
            initial_priorities=initial_priorities,
        )

    def exploration(
        self, positions: npt.NDArray[np.float64], ladder_size: int, seeds: Sequence[Sequence[int]]
    ) -> EpsilonGreedy:
        return ladder_exploration(self.config, self.spec, positions, ladder_size, seeds)

    def network(self) -> DuelingQNetwork:
        """The Q-network with fresh parameters."""
        config = self.config
        return DuelingQNetwork(
            self.spec,
            config.conv,
            config.hidden,
            config.stream_hidden,
            standardize=config.standardize_frames,
        )

    def policy(self) -> Policy:
        return QPolicy(self.network())

    def learner(self, device: torch.device) -> Learner:
        return DQNLearner(self.network(), self.network(), self.config, device)

    def collate(self, items: Items) -> Arrays:
        """Both observations, action, n-step return, discount and probability: `[B, ...]` each.

        Raises:
            CorruptItemsError: an item's action is none, or it has too few frames.
        """
        self._check(items)
        columns = {name: a for name, a in items.columns.items() if name != LEARNER_STEP}
        if items.frames is not None:
            columns["observation"] = items.frames[:, : self.spec.frame_stack]
            columns["next_observation"] = self._bootstrap_stacks(items.frames, items)
        columns["probability"] = items.probabilities.astype(np.float32)
        return columns

    def _bootstrap_stacks(self, frames: Array, items: Items) -> Array:
        """`[B, stack, ...]`, the last frames of each item that bootstraps; of others any frames.

        All begin at the same frame but those of episodes that were cut within n steps. A view
        spares the copy of half a batch.
        """
        assert items.frame_count is not None
        stack, n_step = self.spec.frame_stack, self.config.n_step
        steps = items.frame_count - stack
        if ((steps == n_step) | (items.columns["discount"] == 0)).all():
            return frames[:, n_step:]
        rows = np.arange(len(items))[:, None]
        gathered: Array = frames[rows, steps[:, None] + np.arange(stack)]
        return gathered

    def _check(self, items: Items) -> None:
        """What the schema cannot say: an actor may have sent it all the same."""
        action = items.columns["action"]
        bad = (action < 0) | (action >= self.spec.num_actions)
        if items.frame_count is not None:
            bad |= items.frame_count <= self.spec.frame_stack
        if bad.any():
            raise CorruptItemsError(
                f"expected actions from 0 to {self.spec.num_actions - 1} and more than "
                f"{self.spec.frame_stack} frames of each item",
                items.item_ids[bad].tolist(),
            )


def initial_priorities(
    columns: Arrays, first: Mapping[str, Array], bootstrap: Mapping[str, Array]
) -> npt.NDArray[np.float64]:
    """|TD error| from the values that the actor computed when it acted, `[M]`.

    The actor has no target network, so the double-Q estimate is its own maximum (Horgan et al.,
    2018, section 3: "priorities computed from the actors' own value estimates").
    """
    target = columns["n_step_return"] + columns["discount"] * bootstrap[MAX_Q]
    priorities: npt.NDArray[np.float64] = np.abs(target - first[Q_VALUE]).astype(np.float64)
    return priorities


class QPolicy(Policy):
    """Acts by a Q-network."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network.eval()

    @torch.inference_mode()
    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        observations = torch.from_numpy(inputs.observations).to(self.device)
        q_values = self.network(observations).cpu().numpy()
        actions = q_values.argmax(axis=1) if exploration is None else exploration(q_values)
        extras = {
            Q_VALUE: q_values[np.arange(len(actions)), actions].astype(np.float64),
            MAX_Q: q_values.max(axis=1).astype(np.float64),
        }
        return Decision(actions, inputs.core_state, extras)


class DQNLearner(TargetNetworkLearner):
    """Learns by the double-Q error of single transitions."""

    def __init__(
        self, online: nn.Module, target: nn.Module, config: ApexDQNConfig, device: torch.device
    ) -> None:
        super().__init__(online, target, config, config.target_update_period, device)
        self._config = config

    def update(
        self, batch: BatchArrays
    ) -> tuple[npt.NDArray[np.float64], dict[str, float | Tensor]]:
        tensors = self.tensors(batch)
        q_tm1 = self.network(tensors["observation"])
        with torch.no_grad():
            selector = self.network(tensors["next_observation"])
            target = self.target(tensors["next_observation"])
        td_errors = double_q_td_error(
            q_tm1,
            tensors["action"].long(),
            tensors["n_step_return"],
            tensors["discount"],
            target,
            selector,
        )
        weights = importance_weights(
            tensors["probability"], self._config.importance_sampling_exponent
        )
        losses = (squared_loss if self._config.loss == "squared" else huber_loss)(td_errors)
        loss = (weights * losses).mean()
        step_metrics = self.descend(loss)
        priorities = td_errors.detach().abs()
        metrics = {
            **step_metrics,
            "loss": loss.detach(),
            "td_error": priorities.mean(),
            "q_mean": q_tm1.detach().mean(),
            "q_max": q_tm1.detach().max(),
            "importance_weight_mean": weights.mean(),
        }
        return priorities.double().cpu().numpy(), metrics
