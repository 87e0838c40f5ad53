"""The learner computes from an actor's items what the actor computed when it acted.

Recurrent agents with constant parameters play episodes that end in every way. Covers recurrent
states, frame stacks, episode starts, last actions and rewards, and burn-in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from apex.acting.agent import LocalDecider
from apex.acting.loop import ActingLoop
from apex.algos.agent_factory import make_agent
from apex.algos.base import Learner
from apex.algos.registry import make_algorithm
from apex.algos.sequence_batches import learning_inputs
from apex.data import frame_compression
from apex.data.chunks import Samples
from apex.launch.prepare import preset_config
from apex.ops.action_masks import FORBIDDEN_LOGIT, masked_values
from tests.support.batches import learn
from tests.support.walks import (
    ENVS,
    ContinuousPartsWalk,
    ContinuousPixelWalk,
    ContinuousWalk,
    PartsWalk,
    PixelWalk,
    SeveralChoicesWalk,
    Walk,
    has_frames,
    small,
    walks,
)

torch.set_num_threads(1)
CPU = torch.device("cpu")


def acted(preset: str, env: type[Walk]) -> Iterator[tuple[np.ndarray, Any, Learner]]:
    """Initial priorities, the learner's batch and a fresh learner, for each chunk of an actor."""
    environments = walks(env, 3 if has_frames(env) else 0)
    settings = [*small(preset), "algorithm.conv=[[4, 2, 1]]", f"actor.num_envs={ENVS}"]
    config = preset_config(preset, [*settings, "actor.chunk_length=4"])
    torch.manual_seed(3)
    algorithm = make_algorithm(config.algorithm, environments.spec)
    policy = algorithm.policy()
    agent = make_agent(algorithm, config, policy.core_size, slot=0, incarnation=0)
    loop = ActingLoop(environments, LocalDecider(policy, agent), seed=5)
    for _ in range(150):
        loop.step()
    chunks = agent.take_chunks()
    assert len(chunks) > 5
    for chunk in chunks:
        samples = Samples(np.arange(len(chunk)), np.ones(len(chunk)), chunk.columns, chunk.frames)
        batch = algorithm.collate(frame_compression.decompress(samples, algorithm.schema()))
        learner = algorithm.learner(CPU)
        learner.load_parameters(policy.network.state_dict())
        yield chunk.priorities, batch, learner


@pytest.mark.parametrize("env", [Walk, PixelWalk, PartsWalk])
def test_priorities_of_apex_dqns_actor_are_those_of_its_learner(env):
    """With a target network like the online one, double Q takes the same maximum."""
    for initial, batch, learner in acted("cartpole", env):
        learned, _ = learn(learner, batch)
        np.testing.assert_allclose(learned, initial, rtol=1e-3, atol=1e-5)
        assert len(set(initial.tolist())) == len(initial), "each its own"


@pytest.mark.parametrize("env", [Walk, PixelWalk, PartsWalk])
def test_priorities_of_r2d2s_actor_are_those_of_its_learner(env):
    """With a target network like the online one, double Q takes the same maximum."""
    for initial, batch, learner in acted("cartpole-r2d2", env):
        learned, _ = learn(learner, batch)
        np.testing.assert_allclose(learned, initial, rtol=1e-4)
        assert len(set(initial.tolist())) == len(initial), "each its own"


@pytest.mark.parametrize("env", [Walk, PixelWalk, PartsWalk, SeveralChoicesWalk])
def test_ratios_of_impala_are_one_for_the_policy_that_acted(env):
    for _, batch, learner in acted("cartpole-impala", env):
        with torch.inference_mode():
            logits, _, _ = learner.network(learning_inputs(batch))
        logits = masked_values(logits, batch.action_mask, FORBIDDEN_LOGIT)
        learned = ~batch.is_last
        behaviour = batch.extras["behaviour_logits"][learned]
        np.testing.assert_allclose(logits[learned], behaviour, rtol=1e-4, atol=1e-6)
        _, metrics = learn(learner, batch)
        assert float(metrics["rho_mean"]) == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("env", [ContinuousWalk, ContinuousPixelWalk, ContinuousPartsWalk])
def test_priorities_of_a_deterministic_actor_are_those_of_its_learner(env):
    """The target network equals the online one; items hold the actions as float32."""
    for initial, batch, learner in acted("pendulum-dpg", env):
        learned, _ = learn(learner, batch)
        np.testing.assert_allclose(learned, initial, rtol=1e-3, atol=1e-5)
        assert len(set(initial.tolist())) == len(initial), "each its own"
