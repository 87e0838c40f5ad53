"""Central inference of observations with parts: two images, a vector, a choice and a mask."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch

from apex.acting.agent import LocalDecider
from apex.acting.loop import ActingLoop
from apex.daemons.inference.cuda_stream import Stream
from apex.data.chunk_bytes import chunk_to_arrays
from apex.data.chunks import Chunk
from tests.support.cpu_stream import CpuStream
from tests.support.inference_stage import Stage
from tests.support.waiting import wait_until
from tests.support.walks import PartsWalk, small, walks

torch.set_num_threads(1)


def stage_of(folder: Path, stack: ExitStack, preset: str, stream: Stream | None = None) -> Stage:
    settings = [*small(preset), "algorithm.conv=[[4, 2, 1]]", "env.frame_stack=3"]
    return Stage(folder, stack, *settings, preset=preset, make_env=PartsWalk, stream=stream)


@pytest.mark.parametrize(
    ("preset", "stream"),
    [("cartpole", CpuStream()), ("cartpole-r2d2", None), ("cartpole-impala", CpuStream())],
    ids=["apex_dqn", "r2d2", "impala"],
)
def test_items_are_byte_for_byte_those_of_local_inference(tmp_path, preset, stream):
    with ExitStack() as stack:
        stage = stage_of(tmp_path, stack, preset, stream)
        local = stage.make_agent(0, 0)
        loop = ActingLoop(walks(PartsWalk, 3), LocalDecider(stage.policy, local, 7), seed=5)
        for _ in range(60):
            loop.step()
        expected = local.take_chunks()

        one, environments = stage.client("actor_000"), walks(PartsWalk, 3)
        one.begin(environments.reset(5))
        central: list[Chunk] = []
        for _ in range(60):
            stage.until_asking(1)
            stage.decide()
            one.observe(environments.step(stage.answered(one)))
            wait_until(lambda: stage.acts.waiting_envs, turn=stage.turn)
            central += stage.acts.take_chunks()
    assert len(central) == len(expected) > 5
    for mine, theirs in zip(central, expected):
        mine.check(stage.facts.schema)
        ours, others = chunk_to_arrays(mine), chunk_to_arrays(theirs)
        assert ours.keys() == others.keys()
        assert {"frames.blob", "column.observation.goal", "column.observation.action_mask"} <= {
            *ours
        }
        for name, array in ours.items():
            assert array.dtype == others[name].dtype
            np.testing.assert_array_equal(array, others[name], err_msg=name)


def test_restarted_server_begins_with_the_last_observations_of_all_parts(tmp_path):
    with ExitStack() as stack:
        stage = stage_of(tmp_path, stack, "cartpole")
        one, environments = stage.client("actor_000"), walks(PartsWalk, 3)
        one.begin(environments.reset(5))
        last = environments.step(stage.round(one))
        stage.acts.server.close()
        one.observe(last)
        stage.open(starts=1)
        stage.until_asking(1)
        inputs = stage.made[-1].inputs.observations
        assert list(inputs) == [part.name for part in stage.facts.env.parts]
        for name, array in last.observations.items():
            seen = inputs[name][:, -1] if name in ("map", "near") else inputs[name]
            np.testing.assert_array_equal(seen, array)
        assert not inputs["map"][:, :-1].any(), "episodes begin"
        allowed = last.observations["action_mask"]
        stage.decide()
        assert allowed[np.arange(2), stage.answered(one)].all()
