"""Central inference of observations with parts: two images, a vector, a choice and a mask."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from apex.daemons.inference.cuda_stream import Stream
from tests.support.inference_stage import Stage
from tests.support.walks import PartsWalk, small, walks

torch.set_num_threads(1)


def stage_of(folder: Path, stack: ExitStack, preset: str, stream: Stream | None = None) -> Stage:
    settings = [*small(preset), "algorithm.conv=[[4, 2, 1]]", "env.frame_stack=3"]
    return Stage(folder, stack, *settings, preset=preset, make_env=PartsWalk, stream=stream)


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
            seen = inputs[name][:, -1] if name in ("map", "camera") else inputs[name]
            np.testing.assert_array_equal(seen, array)
        assert not inputs["map"][:, :-1].any(), "episodes begin"
        allowed = last.observations["action_mask"]
        stage.decide()
        assert allowed[np.arange(2), stage.answered(one)].all()
