"""Precision of a learner, and the settings that need a GPU."""

from __future__ import annotations

import msgspec
import pytest
import torch
from torch import nn

from apex.algos.base import Learner, Update
from apex.api import R2D2, ApexDPG, ApexDQN, Impala
from apex.config.sections import LearnerConfig
from apex.envs.spec import ActionBounds, EnvSpec
from apex.errors import ConfigError
from apex.execution.execution import Eager
from apex.execution.settings import make_execution, use_precision
from apex.networks.full_precision import OutputLayer
from tests.support.batches import START, batch_of, random_sequences, random_transitions

CPU = torch.device("cpu")
IMAGES = EnvSpec("Test-v0", (12, 12), "uint8", 2, 4)
VECTORS = EnvSpec("Test-v0", (3,), "float32", 0, 4)
CONTINUOUS = EnvSpec(
    "Test-v0", (3,), "float32", 0, 0, ActionBounds("float32", (2,), (-2.0, 0.0), (2.0, 10.0))
)
SEQUENCES = {"burn_in": 3, "unroll_length": 5, "overlap": 2, "n_step": 2, "lstm": 8}
CASES = {
    "apex_dqn": (ApexDQN, IMAGES, {"conv": ((8, 3, 2),), "hidden": (32,)}),
    "apex_dpg": (ApexDPG, CONTINUOUS, {}),
    "r2d2": (R2D2, IMAGES, {**SEQUENCES, "conv": ((8, 3, 2),)}),
    "impala": (Impala, VECTORS, {"unroll_length": 9}),
}


def update_in(precision: str, name: str) -> tuple[Learner, Update]:
    kind, spec, settings = CASES[name]
    algorithm = kind(kind.Config(**settings), spec)
    torch.manual_seed(1)
    learner = algorithm.learner(CPU)
    learner.precision = use_precision(precision, CPU)
    make = random_sequences if isinstance(algorithm, (R2D2, Impala)) else random_transitions
    update = learner.learn(batch_of(make(algorithm, batch_size=32)), START)
    return learner, update


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_gives_float32_errors_near_those_of_float32(name: str) -> None:
    _, exact = update_in("float32", name)
    learner, rounded = update_in("bfloat16", name)
    assert rounded.priorities.dtype == torch.float32
    apart = (rounded.priorities - exact.priorities).norm() / exact.priorities.norm()
    assert 0 < apart < 0.02, "rounded to 8 bits, and not more"
    loss, expected = rounded.metrics["loss"], exact.metrics["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=0.05, abs=1e-3)
    for parameter in learner.network.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is None or parameter.grad.dtype == torch.float32


def test_output_layer_computes_in_float32_inside_autocast() -> None:
    torch.manual_seed(1)
    output, hidden = OutputLayer(64, 3), nn.Linear(64, 64)
    inputs = torch.randn(5, 64)
    with torch.autocast("cpu", torch.bfloat16):
        features = hidden(inputs)
        values = output(features)
    assert features.dtype == torch.bfloat16 and values.dtype == torch.float32
    exact = features.float() @ output.weight.T + output.bias
    assert torch.allclose(values, exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"execution": "graph"}, "learner.execution = 'graph' needs a GPU, but the learner runs"),
        ({"execution": "compile"}, "compiled networks were slower than eager ones on a CPU"),
        ({"precision": "tf32"}, "expected 'auto', 'float32' or 'bfloat16'"),
    ],
)
def test_settings_that_need_a_gpu_are_refused_on_a_cpu(
    setting: dict[str, str], message: str
) -> None:
    learner = ApexDQN(ApexDQN.Config(), VECTORS).learner(CPU)
    with pytest.raises(ConfigError, match=message):
        make_execution(msgspec.convert(setting, LearnerConfig), learner)


@pytest.mark.parametrize("execution", ["auto", "eager"])
def test_cpu_runs_updates_eagerly(execution: str) -> None:
    learner = ApexDQN(ApexDQN.Config(), VECTORS).learner(CPU)
    config = msgspec.convert({"execution": execution}, LearnerConfig)
    assert isinstance(make_execution(config, learner), Eager)
