"""IMPALA (Espeholt et al., 2018, arXiv 1802.01561): actor-critic with V-trace correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
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
from apex.data.schema import Arrays, Column
from apex.deprecated_imports import deprecated_names
from apex.networks.actor_critic import ActorCriticNetwork
from apex.ops.policy_gradient import entropy, policy_gradient_loss
from apex.ops.vtrace import importance_ratios, vtrace

BEHAVIOUR_LOGITS = "behaviour_logits"


class Impala(SequenceAlgorithm):
    """IMPALA for discrete actions and image or vector observations."""

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
            row_extras=(Column(BEHAVIOUR_LOGITS, "float32", (self.spec.num_actions,)),),
            first_extras=core_state_column(2 * config.lstm),
        )

    def initial_priorities(self, columns: Arrays, extras: Arrays) -> npt.NDArray[np.float64]:
        """All ones: the table is a queue and ignores priorities."""
        return np.ones(len(columns["action"]))

    def exploration(self, place: LadderPlace) -> Exploration:
        return Sampled(place.seeds)

    def network(self) -> ActorCriticNetwork:
        return ActorCriticNetwork(self.spec, self.config.layers)

    def policy(self) -> Policy:
        return ActorCriticPolicy(self.network())

    def loss(self, batch: Sequences, online: nn.Module, target: nn.Module | None) -> Loss:
        """Policy gradient, value and entropy losses with V-trace targets, summed over steps."""
        config = self.config
        logits, values, _ = online(learning_inputs(batch))
        logits, learned = logits[:, :-1], ~batch.is_last[:, :-1]
        actions = batch.action[:, :-1].long()
        behaviour = batch.extras[BEHAVIOUR_LOGITS][:, :-1]
        ratios = importance_ratios(behaviour, logits.detach(), actions)
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
        policy = (learned * policy_gradient_loss(logits, actions, trace.advantages)).sum(dim=1)
        baseline = 0.5 * (learned * value_errors.square()).sum(dim=1)
        entropies = (learned * entropy(logits)).sum(dim=1)
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
    """Acts with a softmax policy."""

    def __init__(self, network: ActorCriticNetwork) -> None:
        self.network = network.eval()
        self.core_size = network.core.core_size

    def compute(self, inputs: InputTensors) -> Mapping[str, Tensor]:
        logits, _, core_state = self.network(acting_inputs(inputs))
        return {BEHAVIOUR_LOGITS: logits.squeeze(1), CORE_STATE: core_state}

    def decide(self, outputs: Arrays, inputs: Inputs, exploration: Exploration | None) -> Decision:
        logits = outputs[BEHAVIOUR_LOGITS]
        actions = logits.argmax(axis=1) if exploration is None else exploration(logits)
        extras = {BEHAVIOUR_LOGITS: logits, CORE_STATE: inputs.core_state}
        return Decision(actions, outputs[CORE_STATE], extras)


__getattr__ = deprecated_names(__name__)
