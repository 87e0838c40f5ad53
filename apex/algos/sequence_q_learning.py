"""Base class of Q-learning algorithms on sequences, recurrent or not, and their policy."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.exploration import LadderPlace
from apex.algos.base import Loss
from apex.algos.batches import Sequences, map_tensors
from apex.algos.policy import InputTensors, Policy
from apex.algos.q_learning import ladder_exploration
from apex.algos.sequence_batches import (
    CORE_STATE,
    SequenceAlgorithm,
    acting_inputs,
    learning_inputs,
)
from apex.algos.transition_batches import MAX_Q, Q_VALUE
from apex.config.sections import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    UnitFloat,
)
from apex.data.schema import Arrays
from apex.networks.recurrent_dueling import RecurrentDuelingQNetwork
from apex.ops.double_q_learning import sequence_priorities


class SequenceQAlgorithm(SequenceAlgorithm):
    """An algorithm that learns action values from sequences (Kapturowski et al., 2019).

    A subclass defines `network`, `layout`, `initial_priorities` and `td_error`. This class
    supplies the policy, the exploration ladder, burn-in, target network, priorities, importance
    weights, optimizer and checkpoints (section 2.3 of the paper).
    """

    class Config(SequenceAlgorithm.Config, frozen=True):
        """The part of an `[algorithm]` section about sequences and their sampling weights."""

        burn_in: NonNegativeInt = 40
        """Environment steps at the start of an item that only update the recurrent state; the
        learner does not train on them."""
        unroll_length: PositiveInt = 80
        """Environment steps of one item that the learner trains on."""
        priority_eta: UnitFloat = 0.9
        """Weight of the largest absolute TD error in a sequence's priority; the mean absolute TD
        error has the remaining weight."""
        importance_sampling_exponent: UnitFloat = 0.6
        """beta: how far importance weights correct the bias of prioritized sampling; 0: not at
        all, 1: fully."""
        target_update_period: PositiveInt = 2500
        """Learner steps between copies of the online network to the target network."""
        epsilon: UnitFloat = 0.4
        """Largest probability of a random action on the exploration ladder."""
        epsilon_alpha: NonNegativeFloat = 7.0
        """Exponent alpha of the ladder: its smallest epsilon is epsilon^(1 + alpha)."""

    extra_names = (Q_VALUE, MAX_Q, CORE_STATE)

    @abstractmethod
    def network(self) -> RecurrentDuelingQNetwork:
        """The network with newly initialised parameters. It maps `SequenceInputs` to Q-values
        `[B, L, num_actions]` and the recurrent state after the last step, `[B, core.core_size]`."""

    def td_error(self, batch: Sequences, q: Tensor, target_q: Tensor) -> Any:
        """TD errors of the U = `unroll_length` trained steps.

        Args:
            batch: sequences on the learner's device, without the burn-in steps, except that
                `core_state` is the recurrent state before the burn-in.
            q: `[B, L - burn_in, num_actions]`, values of the online network, with gradients.
            target_q: `[B, L - burn_in, num_actions]`, values of the target network.

        Returns:
            Errors `[B, U]`, target minus prediction; `[B, U] bool`, the steps that count; and
            optionally metrics by name (0-dimensional tensors).
        """
        raise NotImplementedError("define td_error, or a loss that does without it")

    @classmethod
    def undefined(cls) -> list[str]:
        base = SequenceQAlgorithm
        neither = cls.td_error is base.td_error and cls.loss is base.loss
        return [*super().undefined(), *(["td_error or loss"] if neither else [])]

    def loss(self, batch: Sequences, online: nn.Module, target: nn.Module | None) -> Loss:
        """Squared loss of the TD errors, summed over steps; priorities use `priority_eta`."""
        assert target is not None
        q = self.q_values(online, batch)
        with torch.no_grad():
            target_q = self.q_values(target, batch)
        errors, counts, *more = self.td_error(self._after_burn_in(batch), q, target_q)
        absolute = counts * errors.detach().abs()
        metrics = {
            "td_error": absolute.sum() / counts.sum(),
            "q_mean": q.mean(),
            "q_max": q.max(),
            **(more[0] if more else {}),
        }
        return Loss(
            0.5 * (counts * errors.square()).sum(dim=1),
            sequence_priorities(errors.detach(), counts, self.config.priority_eta),
            metrics,
            steps=self.config.unroll_length,
        )

    def q_values(self, network: nn.Module, batch: Sequences) -> Tensor:
        """Q-values `[B, L - burn_in, A]`; the burn-in steps only update the recurrent state."""
        inputs, burn_in = learning_inputs(batch), self.config.burn_in
        core_state = inputs.core_state
        if burn_in:
            with torch.no_grad():
                _, core_state = network(inputs.part(0, burn_in, core_state))
        q_values: Tensor = network(inputs.part(burn_in, None, core_state))[0]
        return q_values

    def _after_burn_in(self, batch: Sequences) -> Sequences:
        burn_in, fields = self.config.burn_in, batch._asdict()
        for name in ("core_state", "probability", "episode_edges"):
            del fields[name]
        rows = map_tensors(fields, lambda tensor: tensor[:, burn_in:])
        edges = batch.episode_edges
        if edges is not None:
            edges = tuple(edge - burn_in for edge in edges if edge >= burn_in)
        return batch._replace(**rows, episode_edges=edges)

    def exploration(self, place: LadderPlace) -> Exploration:
        return ladder_exploration(self.config, self.spec, place)

    def policy(self) -> Policy:
        return RecurrentQPolicy(self.network())


class RecurrentQPolicy(Policy):
    """Chooses actions by the Q-values of a recurrent network.

    Args:
        network: maps `SequenceInputs` to Q-values and the next recurrent state.
    """

    def __init__(self, network: Any) -> None:
        self.network = network.eval()
        self.core_size = network.core.core_size

    def compute(self, inputs: InputTensors) -> Mapping[str, Tensor]:
        q_values, core_state = self.network(acting_inputs(inputs))
        return {"q_values": inputs.masked(q_values.squeeze(1)), CORE_STATE: core_state}

    def decide(self, outputs: Arrays, inputs: Inputs, exploration: Exploration | None) -> Decision:
        q_values = outputs["q_values"]
        actions = q_values.argmax(axis=1) if exploration is None else exploration(q_values)
        extras = {
            Q_VALUE: q_values[np.arange(len(actions)), actions],
            MAX_Q: q_values.max(axis=1),
            CORE_STATE: inputs.core_state,
        }
        return Decision(actions, outputs[CORE_STATE], extras)
