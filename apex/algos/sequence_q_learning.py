"""Q-learning from sequences, with or without memory: an algorithm is its network and TD errors."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.exploration import LadderPlace
from apex.algos.base import Loss, Policy
from apex.algos.batches import Sequences, map_tensors
from apex.algos.noise import resample_noise
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
from apex.networks.recurrent_dueling import RecurrentDuelingQNetwork
from apex.ops.double_q_learning import sequence_priorities


class SequenceQAlgorithm(SequenceAlgorithm):
    """Learns action values from sequences (Kapturowski et al., 2019, section 2.3).

    Give `network`, `layout`, `initial_priorities` and `td_error`. Policy, exploration ladder,
    burn-in, target network, priorities, importance weights and checkpoints come from here.
    """

    class Config(SequenceAlgorithm.Config, frozen=True):
        """The part of an `[algorithm]` section about sequences and their weights."""

        burn_in: NonNegativeInt = 40
        """Steps before those that are learned from, which only bring the recurrent state up to
        date."""
        unroll_length: PositiveInt = 80
        """Steps that are learned from in one item."""
        priority_eta: UnitFloat = 0.9
        """Share of the largest TD error in a sequence's priority; the rest is the mean's."""
        importance_sampling_exponent: UnitFloat = 0.6
        """beta: how far the learner makes up for what prioritized sampling favours; 0: not at
        all."""
        target_update_period: PositiveInt = 2500
        """Learner steps between two copies of the online to the target network."""
        epsilon: UnitFloat = 0.4
        """The largest of the ladder of epsilons."""
        epsilon_alpha: NonNegativeFloat = 7.0
        """How steeply the others fall: the smallest is epsilon^(1 + alpha)."""

    extra_names = (Q_VALUE, MAX_Q, CORE_STATE)

    @abstractmethod
    def network(self) -> RecurrentDuelingQNetwork:
        """The network with fresh parameters: `SequenceInputs` to Q-values `[B, L, num_actions]`
        and the core's state after the last step; its `core.core_size` says how large that is."""

    @abstractmethod
    def td_error(self, batch: Sequences, q: Tensor, target_q: Tensor) -> Any:
        """TD errors of the steps that are learned from.

        Args:
            batch: on the learner's device, without its burn-in.
            q: `[B, L - burn_in, num_actions]`, of the online network; gradients flow through it.
            target_q: the same of the target network.

        Returns:
            `[B, U]` errors, target minus prediction, and `[B, U] bool`, the steps that count, of
            the U = `unroll_length` steps; as a third, if any, tensors that are logged by name.
        """

    def loss(self, batch: Sequences, online: nn.Module, target: nn.Module | None) -> Loss:
        """Squared loss of the TD errors, summed over steps; priorities by `priority_eta`."""
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
        """Q-values `[B, L - burn_in, A]`; the steps before only bring the state up to date."""
        inputs, burn_in = learning_inputs(batch), self.config.burn_in
        core_state = inputs.core_state
        if burn_in:
            with torch.no_grad():
                _, core_state = network(inputs.part(0, burn_in, core_state))
        q_values: Tensor = network(inputs.part(burn_in, None, core_state))[0]
        return q_values

    def _after_burn_in(self, batch: Sequences) -> Sequences:
        rows = slice(self.config.burn_in, None)
        names = ("action", "reward", "discount", "is_first", "is_last", "last_action")
        parts = {name: getattr(batch, name)[:, rows] for name in (*names, "last_reward")}
        extras = {name: values[:, rows] for name, values in batch.extras.items()}
        observation = map_tensors(batch.observation, lambda tensor: tensor[:, rows])
        return batch._replace(observation=observation, **parts, extras=extras)

    def exploration(self, place: LadderPlace) -> Exploration:
        return ladder_exploration(self.config, self.spec, place)

    def policy(self) -> Policy:
        return RecurrentQPolicy(self.network())


class RecurrentQPolicy(Policy):
    """Chooses actions by their values, with memory."""

    def __init__(self, network: Any) -> None:
        self.network = network.eval()
        self.core_size = network.core.core_size

    @torch.inference_mode()
    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        resample_noise(self.network, noisy=exploration is not None)
        q_values, core_state = self.network(acting_inputs(inputs, self.device))
        q_values = q_values.squeeze(1).cpu().numpy()
        actions = q_values.argmax(axis=1) if exploration is None else exploration(q_values)
        extras = {
            Q_VALUE: q_values[np.arange(len(actions)), actions],
            MAX_Q: q_values.max(axis=1),
            CORE_STATE: inputs.core_state,
        }
        return Decision(actions, core_state.cpu().numpy(), extras)
