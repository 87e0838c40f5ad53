"""IMPALA (Espeholt et al., 2018, arXiv 1802.01561): actor-critic with V-trace correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.exploration import LadderPlace, Sampled
from apex.acting.sequence_accumulator import SequenceLayout
from apex.algos.base import Loss
from apex.algos.batches import Sequences
from apex.algos.policy import InputTensors, Policy
from apex.algos.sequence_batches import (
    CORE_STATE,
    SequenceAlgorithm,
    acting_inputs,
    core_state_column,
    learning_inputs,
)
from apex.config.sections import Decay, NonNegativeFloat, PositiveFloat, PositiveInt, UnitFloat
from apex.data.schema import Array, Arrays, Column
from apex.deprecated_imports import deprecated_names
from apex.envs.spec import EnvSpec
from apex.networks.actor_critic import ActorCriticNetwork
from apex.ops.action_masks import FORBIDDEN_LOGIT, masked_values
from apex.ops.policy_gradient import entropy, policy_gradient_loss
from apex.ops.vtrace import importance_ratios, vtrace

BEHAVIOUR_LOGITS = "behaviour_logits"


class Impala(SequenceAlgorithm):
    """IMPALA for discrete and multi-discrete actions, a softmax for each integer."""

    class Config(SequenceAlgorithm.Config, frozen=True):
        """The `[algorithm]` section; the defaults are the paper's."""

        name: str = "impala"
        unroll_length: PositiveInt = 20
        """T, the environment steps of one item that the learner trains on."""
        discount: UnitFloat = 0.99
        """Discount factor gamma per environment step."""
        rho_clip: PositiveFloat = 1.0
        """rho-bar of V-trace: clips the importance ratio in the TD errors."""
        c_clip: PositiveFloat = 1.0
        """c-bar of V-trace: clips the trace coefficients; at most `rho_clip`."""
        baseline_cost: NonNegativeFloat = 0.5
        """Weight of the value loss; the policy loss has weight 1."""
        entropy_cost: NonNegativeFloat = 0.01
        """Weight of the entropy bonus, which delays convergence to a deterministic policy."""
        optimizer: Literal["rmsprop", "adam"] = "rmsprop"
        learning_rate: PositiveFloat = 0.0006
        final_learning_rate_fraction: UnitFloat = 0.0
        rmsprop_decay: Decay = 0.99
        rmsprop_centered: bool = False
        optimizer_epsilon: PositiveFloat = 0.01
        hidden: tuple[PositiveInt, ...] = (256,)

        def __post_init__(self) -> None:
            if self.c_clip > self.rho_clip:
                raise ValueError(
                    f"c_clip ({self.c_clip}) must be at most rho_clip ({self.rho_clip})"
                )

    action_kinds = frozenset({"discrete", "multi-discrete"})
    reduction = "sum"

    @property
    def extra_names(self) -> Sequence[str]:  # type: ignore[override]
        return (BEHAVIOUR_LOGITS, CORE_STATE) if self.config.lstm else (BEHAVIOUR_LOGITS,)

    def layout(self) -> SequenceLayout:
        config = self.config
        return SequenceLayout(
            length=config.unroll_length + 1,
            period=config.unroll_length,
            discount=config.discount,
            row_extras=(Column(BEHAVIOUR_LOGITS, "float32", (sum(self.spec.head_sizes),)),),
            first_extras=core_state_column(2 * config.lstm),
        )

    def initial_priorities(self, columns: Arrays, extras: Arrays) -> npt.NDArray[np.float64]:
        """All ones: the table is a queue and ignores priorities."""
        return np.ones(len(columns["action"]))

    def exploration(self, place: LadderPlace) -> Exploration:
        return Sampled(place.seeds, self._head_sizes)

    @property
    def _head_sizes(self) -> tuple[int, ...] | None:
        """Sizes of the heads of a factored policy; None: actions are discrete."""
        return None if self.spec.action_bounds is None else self.spec.head_sizes

    def network(self) -> ActorCriticNetwork:
        return ActorCriticNetwork(self.spec, self.config.layers, self.encoders())

    def policy(self) -> Policy:
        return ActorCriticPolicy(self.network(), self.spec)

    def _heads(self, actions: Tensor) -> Tensor:
        """The integers of actions `[B, T, *action shape]`, from 0: `[B, T]`, or `[B, T, heads]`."""
        bounds = self.spec.action_bounds
        if bounds is None:
            return actions.long()
        # Numbers of Python, as a CUDA graph cannot record a copy of them from the host.
        heads = zip(actions.long().flatten(2).unbind(-1), bounds.low)
        return torch.stack([head - int(low) for head, low in heads], dim=-1)

    def loss(self, batch: Sequences, online: nn.Module, target: nn.Module | None) -> Loss:
        """Policy gradient, value and entropy losses with V-trace targets, summed over steps."""
        config = self.config
        logits, values, _ = online(learning_inputs(batch))
        logits = masked_values(logits, batch.action_mask, FORBIDDEN_LOGIT)
        logits, learned = logits[:, :-1], ~batch.is_last[:, :-1]
        actions, sizes = self._heads(batch.action[:, :-1]), self._head_sizes
        behaviour = batch.extras[BEHAVIOUR_LOGITS][:, :-1]
        ratios = importance_ratios(behaviour, logits.detach(), actions, sizes)
        trace = vtrace(
            ratios,
            batch.reward[:, :-1],
            batch.discount[:, :-1],
            values.detach(),
            batch.is_last[:, :-1],
            rho_clip=config.rho_clip,
            c_clip=config.c_clip,
        )
        value_errors = trace.targets - values[:, :-1]
        losses = policy_gradient_loss(logits, actions, trace.advantages, sizes)
        policy = (learned * losses).sum(dim=1)
        baseline = 0.5 * (learned * value_errors.square()).sum(dim=1)
        entropies = (learned * entropy(logits, sizes)).sum(dim=1)
        count = learned.sum()
        return Loss(
            policy + config.baseline_cost * baseline - config.entropy_cost * entropies,
            (learned * value_errors.detach().abs()).mean(dim=1),
            {
                "policy_loss": policy.sum() / count,
                "baseline_loss": baseline.sum() / count,
                "entropy": entropies.sum() / count,
                "value_mean": values.mean(),
                "rho_mean": (learned * ratios).sum() / count,
            },
            steps=count,
        )


class ActorCriticPolicy(Policy):
    """Acts with a softmax policy.

    Args:
        network: gives the logits.
        spec: specification of the environments; None: their actions are discrete.
    """

    def __init__(self, network: ActorCriticNetwork, spec: EnvSpec | None = None) -> None:
        self.network = network.eval()
        self.core_size = network.core.core_size
        self._bounds = spec.action_bounds if spec is not None else None
        self._ends = np.cumsum(spec.head_sizes)[:-1] if spec is not None else np.zeros(0, int)

    def compute(self, inputs: InputTensors) -> Mapping[str, Tensor]:
        logits, _, core_state = self.network(acting_inputs(inputs))
        logits = inputs.masked(logits.squeeze(1), FORBIDDEN_LOGIT)
        return {BEHAVIOUR_LOGITS: logits, CORE_STATE: core_state}

    def decide(self, outputs: Arrays, inputs: Inputs, exploration: Exploration | None) -> Decision:
        logits = outputs[BEHAVIOUR_LOGITS]
        actions = self._best(logits) if exploration is None else exploration(logits)
        if self._bounds is not None:
            low, _ = self._bounds.arrays()
            actions = low + actions.reshape(-1, *low.shape)
        extras = {BEHAVIOUR_LOGITS: logits, CORE_STATE: inputs.core_state}
        return Decision(actions, outputs[CORE_STATE], extras)

    def _best(self, logits: Array) -> Array:
        """The most probable actions, `[E]`; with heads `[E, heads]`, each from 0."""
        if self._bounds is None:
            best: Array = logits.argmax(axis=1)
            return best
        heads = np.split(logits, self._ends, axis=1)
        return np.stack([head.argmax(axis=1) for head in heads], axis=1)


__getattr__ = deprecated_names(__name__)
