"""IMPALA (Espeholt et al., 2018, arXiv 1802.01561): an actor-critic off-policy by V-trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.exploration import Sampled
from apex.acting.sequence_accumulator import SequenceLayout
from apex.algos.base import BatchArrays, Learner, Policy
from apex.algos.optimization import Optimization
from apex.algos.sequence_batches import (
    CORE_STATE,
    SequenceAlgorithm,
    SequenceSection,
    acting_inputs,
    core_state_column,
    learning_inputs,
)
from apex.config.sections import NonNegativeFloat, PositiveFloat, PositiveInt, UnitFloat
from apex.data.schema import Arrays, Column
from apex.networks.actor_critic import ActorCriticNetwork
from apex.ops.policy_gradient import entropy, policy_gradient_loss
from apex.ops.vtrace import importance_ratios, vtrace

BEHAVIOUR_LOGITS = "behaviour_logits"


class ImpalaConfig(SequenceSection, frozen=True):
    """The `[algorithm]` section; the defaults are the paper's."""

    name: str = "impala"
    unroll_length: PositiveInt = 20
    """T, steps that are learned from in one item."""
    discount: UnitFloat = 0.99
    """gamma."""
    rho_clip: PositiveFloat = 1.0
    """rho-bar of V-trace."""
    c_clip: PositiveFloat = 1.0
    """c-bar of V-trace, at most rho-bar."""
    baseline_cost: NonNegativeFloat = 0.5
    """Weight of the value's loss beside the policy's."""
    entropy_cost: NonNegativeFloat = 0.01
    """Weight of the policy's entropy: how much it is kept from deciding early."""
    optimizer: Literal["rmsprop", "adam"] = "rmsprop"
    learning_rate: PositiveFloat = 0.0006
    final_learning_rate_fraction: UnitFloat = 0.0
    rmsprop_decay: UnitFloat = 0.99
    rmsprop_centered: bool = False
    optimizer_epsilon: PositiveFloat = 0.01
    hidden: tuple[PositiveInt, ...] = (256,)

    def __post_init__(self) -> None:
        if self.c_clip > self.rho_clip:
            raise ValueError(f"c_clip ({self.c_clip}) must be at most rho_clip ({self.rho_clip})")


class Impala(SequenceAlgorithm):
    """IMPALA for discrete actions and image or vector observations."""

    Config = ImpalaConfig
    config: ImpalaConfig

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
        """Ones: the table is a queue."""
        return np.ones(len(columns["action"]))

    def exploration(
        self, positions: npt.NDArray[np.float64], ladder_size: int, seeds: Sequence[Sequence[int]]
    ) -> Exploration:
        return Sampled(seeds)

    def network(self) -> ActorCriticNetwork:
        """The network with fresh parameters."""
        return ActorCriticNetwork(self.spec, self.config.layers)

    def policy(self) -> Policy:
        return ActorCriticPolicy(self.network())

    def learner(self, device: torch.device) -> Learner:
        return ImpalaLearner(self.network(), self.config, device)


class ActorCriticPolicy(Policy):
    """Acts by a softmax policy."""

    def __init__(self, network: ActorCriticNetwork) -> None:
        self.network = network.eval()
        self.core_size = network.core.core_size

    @torch.inference_mode()
    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        logits, _, core_state = self.network(acting_inputs(inputs, self.device))
        logits = logits.squeeze(1).cpu().numpy()
        actions = logits.argmax(axis=1) if exploration is None else exploration(logits)
        extras = {BEHAVIOUR_LOGITS: logits, CORE_STATE: inputs.core_state}
        return Decision(actions, core_state.cpu().numpy(), extras)


class ImpalaLearner(Learner):
    """The network and its optimizer."""

    def __init__(
        self, network: ActorCriticNetwork, config: ImpalaConfig, device: torch.device
    ) -> None:
        self.network: nn.Module = network.to(device)
        self._config = config
        self.device = device
        self._optimization = Optimization(self.network, config)

    def update(
        self, batch: BatchArrays
    ) -> tuple[npt.NDArray[np.float64], dict[str, float | Tensor]]:
        tensors = self.tensors(batch)
        config = self._config
        logits, values, _ = self.network(learning_inputs(tensors))
        steps = {
            name: tensors[name][:, :-1]
            for name in ("action", "reward", "discount", "is_last", BEHAVIOUR_LOGITS)
        }
        actions, logits, learned = steps["action"].long(), logits[:, :-1], ~steps["is_last"]
        ratios = importance_ratios(steps[BEHAVIOUR_LOGITS], logits.detach(), actions)
        trace = vtrace(
            ratios,
            steps["reward"],
            steps["discount"],
            values.detach(),
            steps["is_last"],
            rho_clip=config.rho_clip,
            c_clip=config.c_clip,
        )
        value_errors = trace.targets - values[:, :-1]
        policy_loss = (learned * policy_gradient_loss(logits, actions, trace.advantages)).sum()
        baseline_loss = 0.5 * (learned * value_errors.square()).sum()
        entropies = learned * entropy(logits)
        loss = (
            policy_loss
            + config.baseline_cost * baseline_loss
            - config.entropy_cost * entropies.sum()
        )
        step_metrics = self._optimization.step(loss)
        count = learned.sum()
        metrics = {
            **step_metrics,
            "loss": loss.detach() / count,
            "policy_loss": policy_loss.detach() / count,
            "baseline_loss": baseline_loss.detach() / count,
            "entropy": entropies.detach().sum() / count,
            "value_mean": values.detach().mean(),
            "rho_mean": (learned * ratios).sum() / count,
        }
        priorities = (learned * value_errors.detach().abs()).mean(dim=1)
        return priorities.double().cpu().numpy(), metrics

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), **self._optimization.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._optimization.load_state_dict(state)
        self.network.load_state_dict(state["network"])
