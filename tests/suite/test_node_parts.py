"""The Node.js actor with an observation of several parts: images, a vector, a choice, a mask."""

from __future__ import annotations

import base64
import itertools
import json
import subprocess
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lz4.block
import numpy as np
import pytest
import torch

from apex.algos.base import Algorithm
from apex.algos.registry import make_algorithm
from apex.daemons.learner.parameter_server import ParameterServer
from apex.daemons.learner.parameter_versions import Publication, PublicationBoard
from apex.daemons.replay.daemon import ReplayServer
from apex.data import frame_compression
from apex.data.chunks import Items, Samples
from apex.networks import parameters
from apex.plugins import load
from apex.runs.directory import RunDirectory
from tests.support.batches import learn
from tests.support.node_client import CLIENT, NodeActor, installed, need_node
from tests.support.services import prepared
from tests.support.statuses import learner_report
from tests.support.waiting import wait_until

torch.set_num_threads(1)

Corners: Any = getattr(*load(f"{CLIENT / 'corners.py'}:Corners", "env.id"))
"""The environment in Python, as `apex run --env` loads it."""

STEPS, STACK, N_STEP = 2_000, 2, 3
SETTINGS = (
    "actor.count=1", "actor.num_envs=2", "actor.chunk_length=8", "replay.capacity=4000",
    "replay.min_size=1", "replay.samples_per_insert=0", "replay.durability=off",
    f"env.frame_stack={STACK}", f"algorithm.n_step={N_STEP}", "algorithm.discount=0.9",
    "algorithm.conv=[[4, 2, 1]]", "algorithm.hidden=[16]", "algorithm.stream_hidden=[16]",
)  # fmt: skip


class Servers:
    """The servers that an actor needs, in this process, and one publication."""

    def __init__(self, run: RunDirectory, algorithm: Algorithm, stack: ExitStack) -> None:
        endpoints, facts, board = run.endpoints(), run.facts(), PublicationBoard()
        self.replay = ReplayServer(run.config(), endpoints, facts, run.path / "replay")
        stack.callback(self.replay.close)
        learner = ParameterServer(
            endpoints, facts, 1, 0, {}, board,
            status=learner_report, on_evaluation=lambda mean: None, on_snapshot=lambda: None,
        )  # fmt: skip
        stack.callback(learner.close)
        data = parameters.encode(algorithm.network())
        board.put(Publication(0, 50, 0, 0.0, data, zlib.crc32(data)))
        learner.start()

    def serve(self, actor: NodeActor) -> None:
        """Serve until the actor has ended."""
        wait_until(
            lambda: actor.popen.poll() is not None,
            60.0,
            "the actor has done its steps",
            turn=lambda: self.replay.turn(0.01),
        )

    def items(self) -> Items:
        """All items of the table, decompressed."""
        table = self.replay.table
        ids = table.state().item_ids
        columns, frames = table.contents(ids)
        return frame_compression.decompress(
            Samples(ids, np.ones(len(ids)), columns, frames), table.schema
        )


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as one:
        yield one


def test_items_of_a_node_actor_are_transitions_of_the_same_environment_in_python(
    tmp_path: Path, stack: ExitStack
) -> None:
    client = installed(tmp_path / "node")
    run = prepared(tmp_path, *SETTINGS, make_env=Corners)
    algorithm = make_algorithm(run.config().algorithm, run.facts().env)
    servers = Servers(run, algorithm, stack)
    actor = NodeActor(client, run, "--index", "7", "--steps", str(STEPS))
    stack.callback(actor.popen.kill)
    servers.serve(actor)
    actor.finish(1.0)
    steps, inserted, acknowledged = actor.sums()
    items = servers.items()
    assert steps == STEPS and inserted == acknowledged == len(items)
    assert 0 <= STEPS - inserted <= 2 * (N_STEP - 1)
    assert not servers.replay.inserts.server.refused

    lengths = np.bincount(items.frame_count - STACK)
    assert lengths[1] and lengths[2] and lengths[3] > 200, "full ones, and those of episodes' ends"
    discounts = set(np.round(items.columns["discount"].astype(float), 4))
    assert 0.0 in discounts, "of 80 random walks some reach the goal"
    frames_column = run.facts().schema.frames
    assert frames_column is not None
    images = frames_column.split(items.frames)
    for row in range(0, len(items), 4):
        check_transition(items, row, {name: array[row] for name, array in images.items()})

    assert_other_choices_are_refused(client, run)
    _, metrics = learn(algorithm.learner(torch.device("cpu")), algorithm.collate(items))
    assert np.isfinite(list(metrics.values())).all()


def assert_other_choices_are_refused(client: Path, run: RunDirectory) -> None:
    """The actor refuses a run whose parts are not exactly those of its environment."""
    facts = json.loads(run.schema_file.read_text())
    (goal,) = (part for part in facts["env"]["parts"] if part["name"] == "goal")
    goal["choices"] = [5]
    run.schema_file.write_text(json.dumps(facts))
    done = subprocess.run(
        ["node", str(client / "actor.js"), "--run", str(run.path), "--index", "8"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 78 and done.stderr.count("\n") == 1
    assert "goal: choices [] of 4" in done.stderr and "goal: choices [] of 5" in done.stderr


def check_transition(items: Items, row: int, images: dict[str, np.ndarray]) -> None:
    """Check one item: some allowed actions after the first lead to what it says."""
    count = int(items.frame_count[row])
    frames = {name: array[:count] for name, array in images.items()}
    begin, end = (part_columns(items, row, prefix) for prefix in ("", "next_"))
    steps = count - STACK
    env = Corners()
    env.goal, env.cell, env.left = int(begin["goal"]), np.rint(5 * begin["position"]), 1000
    env.cell = env.cell.astype(int)
    expect(begin, {n: stack[STACK - 1] for n, stack in frames.items()}, env.seen())
    assert end["goal"] == begin["goal"]
    assert begin["action_mask"][items.columns["action"][row]] == 1

    first = int(items.columns["action"][row])
    for others in itertools.product(range(4), repeat=steps - 1):
        path = walked(env, [first, *others])
        if path is not None and all(
            (frames["map"][STACK + k] == seen["map"]).all() for k, (seen, *_) in enumerate(path)
        ):
            break
    else:
        raise AssertionError(f"no actions after {first} lead from {begin} to {end} by {frames}")
    for k, (seen, _, _) in enumerate(path):
        np.testing.assert_array_equal(frames["near"][STACK + k], seen["near"])
    expect(end, {n: stack[-1] for n, stack in frames.items()}, path[-1][0])
    rewards = [reward for _, reward, _ in path]
    assert items.columns["n_step_return"][row] == pytest.approx(
        sum(0.9**k * reward for k, reward in enumerate(rewards)), abs=1e-6
    )
    terminated = path[-1][2]
    expected = 0.0 if terminated else 0.9**steps
    assert items.columns["discount"][row] == pytest.approx(expected, abs=1e-6)
    assert items.columns["learner_step"][row] == 50
    before = frames["map"][0]
    if before.any():  # the frame before the first observation: one step away
        places = [np.argwhere(frame == 255)[0] for frame in frames["map"][:2]]
        assert np.abs(places[0] - places[1]).sum() == 1


def walked(env: Any, actions: list[int]) -> list[tuple[dict, float, bool]] | None:
    """Observation, reward and end of each step; None if an action is forbidden, or after an end."""
    start, path = env.cell, []
    try:
        for action in actions:
            if env.at_goal or not env.seen()["action_mask"][action]:
                return None
            seen, reward, terminated, _, _ = env.step(action)
            path.append((seen, reward, terminated))
    finally:
        env.cell = start
    return path


def part_columns(items: Items, row: int, prefix: str) -> dict[str, np.ndarray]:
    begin = f"{prefix}observation."
    return {n.removeprefix(begin): a[row] for n, a in items.columns.items() if n.startswith(begin)}


def expect(columns: dict, frames: dict, seen: dict) -> None:
    """Check an observation against that of the environment."""
    assert columns.keys() | frames.keys() == seen.keys()
    for name, array in {**columns, **frames}.items():
        np.testing.assert_array_equal(array, seen[name], err_msg=name)


SCRIPT = """
import { dataBlock } from "./lz4.js";
const given = JSON.parse(await new Response(process.stdin).text());
const blocks = given.map((text) => dataBlock(Uint8Array.from(Buffer.from(text, "base64"))));
console.log(JSON.stringify(blocks.map((block) => block.toString("base64"))));
"""


def test_images_that_node_compresses_are_lz4_blocks() -> None:
    need_node()
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, size, dtype=np.uint8) for size in [*range(40), 300, 70_000]]
    images += [np.full(size, 7, np.uint8) for size in [1, 5, 12, 13, 17, 18, 300, 7056, 200_000]]
    images += [np.tile(rng.integers(0, 256, n, dtype=np.uint8), 90) for n in (1, 2, 3, 7, 84, 1000)]
    images += [rng.integers(0, 2, size, dtype=np.uint8) for size in (20, 100, 7056)]
    given = json.dumps([base64.b64encode(image.tobytes()).decode() for image in images])
    done = subprocess.run(
        ["node", "--input-type=module", "-e", SCRIPT],
        cwd=CLIENT, input=given, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    blocks = [base64.b64decode(text) for text in json.loads(done.stdout)]
    for image, block in zip(images, blocks, strict=True):
        size = len(image)
        assert int.from_bytes(block[:4], "little") == len(block) - 4 <= size + size // 255 + 16
        assert lz4.block.decompress(block[4:], uncompressed_size=size) == image.tobytes()
    flat = {len(image): len(block) for image, block in zip(images[42:51], blocks[42:51])}
    assert flat[7056] < 50 and flat[200_000] < 1000
