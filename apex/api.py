"""Public API for writing algorithms: `from apex.api import QAlgorithm, Transitions, nn`.

These names are stable; the modules that they are imported from may move.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from apex.acting.accumulator import Accumulator, VectorStep
from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.exploration import (
    EpsilonGreedy,
    GaussianNoise,
    LadderPlace,
    Progress,
    Sampled,
    epsilon_ladder,
    noise_ladder,
)
from apex.acting.sequence_accumulator import SequenceLayout
from apex.acting.transition_accumulator import NStepAccumulator
from apex.algos.apex_dpg import ApexDPG
from apex.algos.apex_dqn import ApexDQN
from apex.algos.base import Algorithm, Learner, Loss, Metrics, Update
from apex.algos.batches import Sequences, Transitions
from apex.algos.impala import Impala
from apex.algos.noise import resample_noise
from apex.algos.optimization import Optimization, OptimizerConfig
from apex.algos.policy import InputTensors, Policy
from apex.algos.q_learning import QAlgorithm, QPolicy
from apex.algos.r2d2 import R2D2
from apex.algos.sequence_batches import (
    CORE_STATE,
    SequenceAlgorithm,
    acting_inputs,
    core_state_column,
    learning_inputs,
)
from apex.algos.sequence_q_learning import RecurrentQPolicy, SequenceQAlgorithm
from apex.algos.target_network import TargetNetwork
from apex.algos.transition_batches import MAX_Q, Q_VALUE, TransitionAlgorithm
from apex.config.sections import (
    AlgorithmConfig,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    UnitFloat,
)
from apex.data.chunks import Items
from apex.data.schema import Array, Column, FramesColumn, Schema
from apex.envs.spec import EnvSpec, ObservationPart
from apex.errors import ConfigError, CorruptItemsError, EnvError
from apex.evaluation.trained_policy import TrainedPolicy, load_policy
from apex.networks.actor_critic import ActorCriticNetwork
from apex.networks.deterministic import DeterministicLayers, DeterministicNetwork
from apex.networks.dueling import DuelingQNetwork
from apex.networks.recurrent_cores import SequenceInputs
from apex.networks.recurrent_dueling import RecurrentDuelingQNetwork
from apex.networks.sequence import Layers, SequenceNetwork
from apex.networks.torsos import Encoders, ImageTorso, VectorTorso, mlp, torso
from apex.ops.action_masks import FORBIDDEN_LOGIT, masked_values
from apex.ops.deterministic_policy_gradient import deterministic_policy_gradient_loss
from apex.ops.double_q_learning import (
    double_q_td_error,
    dueling_values,
    huber_loss,
    importance_weights,
    n_step_targets,
    sequence_priorities,
    squared_loss,
)
from apex.ops.policy_gradient import entropy, policy_gradient_loss
from apex.ops.value_rescale import rescale, unrescale
from apex.ops.vtrace import importance_ratios, vtrace

__all__ = [
    "CORE_STATE",
    "FORBIDDEN_LOGIT",
    "MAX_Q",
    "Q_VALUE",
    "R2D2",
    "Accumulator",
    "ActorCriticNetwork",
    "Algorithm",
    "AlgorithmConfig",
    "ApexDPG",
    "ApexDQN",
    "Array",
    "Column",
    "ConfigError",
    "CorruptItemsError",
    "Decision",
    "DeterministicLayers",
    "DeterministicNetwork",
    "DuelingQNetwork",
    "Encoders",
    "EnvError",
    "EnvSpec",
    "EpsilonGreedy",
    "Exploration",
    "FramesColumn",
    "GaussianNoise",
    "ImageTorso",
    "Impala",
    "InputTensors",
    "Inputs",
    "Items",
    "LadderPlace",
    "Layers",
    "Learner",
    "Loss",
    "Metrics",
    "NStepAccumulator",
    "NonNegativeFloat",
    "NonNegativeInt",
    "ObservationPart",
    "Optimization",
    "OptimizerConfig",
    "Policy",
    "PositiveFloat",
    "PositiveInt",
    "Progress",
    "QAlgorithm",
    "QPolicy",
    "RecurrentDuelingQNetwork",
    "RecurrentQPolicy",
    "Sampled",
    "Schema",
    "SequenceAlgorithm",
    "SequenceInputs",
    "SequenceLayout",
    "SequenceNetwork",
    "SequenceQAlgorithm",
    "Sequences",
    "TargetNetwork",
    "Tensor",
    "TrainedPolicy",
    "TransitionAlgorithm",
    "Transitions",
    "UnitFloat",
    "Update",
    "VectorStep",
    "VectorTorso",
    "acting_inputs",
    "core_state_column",
    "deterministic_policy_gradient_loss",
    "double_q_td_error",
    "dueling_values",
    "entropy",
    "epsilon_ladder",
    "huber_loss",
    "importance_ratios",
    "importance_weights",
    "learning_inputs",
    "load_policy",
    "masked_values",
    "mlp",
    "n_step_targets",
    "nn",
    "noise_ladder",
    "np",
    "policy_gradient_loss",
    "resample_noise",
    "rescale",
    "sequence_priorities",
    "squared_loss",
    "torch",
    "torso",
    "unrescale",
    "vtrace",
]
