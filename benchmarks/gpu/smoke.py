"""Check that the GPU path is right: real learners beside the CPU, copies, checkpoints, faults.

On a machine without a GPU the same checks run on the CPU twice, which tries the script itself.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apex.acting.decisions import Inputs
from apex.acting.exploration import Progress
from apex.algos.apex_dqn import ApexDQN
from apex.algos.base import Algorithm, Learner
from apex.algos.batches import map_tensors
from apex.daemons.learner.device_batches import transfer_to
from apex.daemons.learner.host_copies import HostCopies, ParameterEncoder
from apex.errors import DeviceMemoryError
from apex.execution.execution import COMPARED, WARM_UP, Graphed
from apex.execution.recorders import CudaGraphs
from apex.host import hardware, process_tuning
from apex.networks import parameters
from apex.runs import checkpoint
from apex.runs.checkpoint import Manifest
from benchmarks.gpu.ceilings import ceilings
from benchmarks.gpu.played_batches import played_batches
from benchmarks.gpu.stage import check, emit, left_s, relative

START = Progress(0, 0)
CUDA = torch.cuda.is_available()
DEVICE, CPU = torch.device("cuda" if CUDA else "cpu"), torch.device("cpu")
SKIPPED = {"skipped": "no GPU"}
TOLERANCE = 0.02
"""Relative error that TF32 may make in the priorities of one update."""
UPDATES = 12
"""Updates of a comparison with a graph, most of them replayed."""
RACE_THREADS, RACE_SECONDS = 8, 8.0


def machine() -> dict[str, Any]:
    """Versions and sizes; fails if torch cannot use a GPU."""
    here = hardware.this_machine()
    facts: dict[str, Any] = {
        "torch": torch.__version__, "cuda": torch.version.cuda, "usable": CUDA,
        "python": sys.version.split()[0], "numpy": np.__version__, "cores": here.cores,
        "memory_gib": round(here.memory_bytes / 2**30, 1), "driver": here.has_gpu,
    }  # fmt: skip
    if CUDA:
        card = torch.cuda.get_device_properties(0)
        facts |= {
            "device": card.name, "multiprocessors": card.multi_processor_count,
            "gib": round(card.total_memory / 2**30, 1),
            "capability": f"{card.major}.{card.minor}", "cudnn": torch.backends.cudnn.version(),
        }  # fmt: skip
    return {**facts, "ok": CUDA and here.has_gpu}


def saved(algorithm: Algorithm, learner: Learner) -> dict[str, Any]:
    """The learner's state, from a checkpoint on the disk."""
    manifest = Manifest(
        learner_step=1, param_version=1, env_steps=0, train_s=0.0, config={}, env=algorithm.spec
    )
    published = parameters.encode(learner.network)
    with tempfile.TemporaryDirectory(prefix="apex-smoke-") as folder:
        path = checkpoint.save(Path(folder), "step", manifest, published, learner.state_dict())
        return checkpoint.load(path).learner_state()


def priorities_of(learner: Learner, batch: Any) -> Any:
    """The priorities of one update, on the host."""
    return learner.learn(batch, START).priorities.double().cpu().numpy()


def learner_beside_cpu(preset: str, size: int) -> Callable[[], dict[str, Any]]:
    """Compare three updates, and the parameters after them, on the device and on the CPU."""

    def run() -> dict[str, Any]:
        algorithm, batches = played_batches(preset, size, 3)
        ours, theirs = algorithm.learner(DEVICE), algorithm.learner(CPU)
        theirs.load_state_dict(saved(algorithm, ours))
        move, errors = transfer_to(DEVICE), []
        for batch in batches:
            update = ours.learn(move(batch), START)
            found = update.priorities.double().cpu().numpy()
            errors.append(round(relative(found, priorities_of(theirs, batch)), 6))
        pairs = zip(ours.network.parameters(), theirs.network.parameters())
        apart = max(relative(p.detach().cpu(), q.detach()) for p, q in pairs)
        finite = all(bool(torch.isfinite(value)) for value in update.metrics.values())
        return {
            "device": str(next(ours.network.parameters()).device),
            "priority_errors": errors,
            "parameters_apart": round(apart, 6),
            "ok": errors[0] < TOLERANCE and finite,
        }

    return run


def graph_beside_eager(preset: str, size: int) -> Callable[[], dict[str, Any]]:
    """Compare recorded updates of packed batches with eager ones, from the same parameters."""

    def run() -> dict[str, Any]:
        if not CUDA:
            return SKIPPED
        algorithm, batches = played_batches(preset, size, UPDATES, packed=True)
        ours, theirs = algorithm.learner(DEVICE), algorithm.learner(DEVICE)
        theirs.load_state_dict(saved(algorithm, ours))
        move, errors = transfer_to(DEVICE), []
        graph = Graphed(ours, CudaGraphs(DEVICE), size)
        for batch in map(move, batches):
            found = ours.learn(batch, START, graph).priorities.double().cpu()
            errors.append(relative(found, theirs.learn(batch, START).priorities.double().cpu()))
        return {
            "replayed": graph.replays,
            "priority_errors": [round(error, 6) for error in errors],
            "ok": graph.replays and max(errors[: WARM_UP + COMPARED + 2]) < TOLERANCE,
        }

    return run


class Waiting(ApexDQN):
    """Waits for the device in each update."""

    def td_error(self, batch: Any, online: Any, target: Any) -> Any:
        errors, metrics = super().td_error(batch, online, target)
        return errors * (1.0 + 0.0 * errors.sum().item()), metrics


def update_that_waits() -> dict[str, Any]:
    """An update that cannot be recorded runs eagerly, on the usual stream and in bounded memory."""
    if not CUDA:
        return SKIPPED
    algorithm, batches = played_batches("pong", 64, 4, packed=True)
    waiting, move = Waiting(algorithm.config, algorithm.spec), transfer_to(DEVICE)
    learner, used = waiting.learner(DEVICE), []
    graph = Graphed(learner, CudaGraphs(DEVICE), 64)
    for _ in range(5):
        for batch in batches * 5:
            learner.learn(move(batch), START, graph)
        torch.cuda.synchronize()
        used.append(torch.cuda.memory_allocated(DEVICE))
    usual = torch.cuda.current_stream(DEVICE) == torch.cuda.default_stream(DEVICE)
    grown = used[-1] - used[1]
    return {"replayed": graph.replays, "usual_stream": usual, "grown_bytes": grown,
            "ok": not graph.replays and usual and grown < 1 << 20}  # fmt: skip


def recorded_again() -> dict[str, Any]:
    """After `reset`, as after a rollback, updates are recorded again; a short batch is padded."""
    if not CUDA:
        return SKIPPED
    algorithm, batches = played_batches("pong", 64, 4, packed=True)
    ours, theirs, move = algorithm.learner(DEVICE), algorithm.learner(DEVICE), transfer_to(DEVICE)
    graph, errors, replays = Graphed(ours, CudaGraphs(DEVICE), 64), [], []
    for _ in range(2):
        state = saved(algorithm, theirs)
        ours.load_state_dict(state)
        graph.reset()
        short = map_tensors(batches[1], lambda tensor: tensor[:40])
        for batch in map(move, [*batches * 3, short, batches[2]]):
            found = ours.learn(batch, START, graph).priorities.double().cpu()
            errors.append(relative(found, theirs.learn(batch, START).priorities.double().cpu()))
        replays.append(graph.replays)
    return {"replayed": replays, "priority_errors": [round(max(errors), 6)],
            "ok": all(replays) and max(errors) < TOLERANCE}  # fmt: skip


def checkpoint_round_trip() -> dict[str, Any]:
    """From the device to a file to a new learner on the device: the next update is the same."""
    algorithm, (first, second) = played_batches("pong", 32, 2)
    one = algorithm.learner(DEVICE)
    priorities_of(one, first)
    two = algorithm.learner(DEVICE)
    two.load_state_dict(saved(algorithm, one))
    error = relative(priorities_of(two, second), priorities_of(one, second))
    after = relative(priorities_of(two, first), priorities_of(one, first))
    state = two.optimizations()["online"].optimizer.state.values()
    tensors = [t for values in state for t in values.values() if isinstance(t, torch.Tensor)]
    where = {str(tensor.device) for tensor in tensors}
    own = {str(next(two.network.parameters()).device)}
    good = error < 1e-3 and after < 1e-2 and where == own
    return {"error": error, "after_it": after, "optimizer_on": sorted(where), "ok": good}


def publication() -> dict[str, Any]:
    """A publication has the network's parameters, bit for bit."""
    algorithm, (batch,) = played_batches("pong", 32)
    learner, policy = algorithm.learner(DEVICE), algorithm.policy()
    priorities_of(learner, batch)
    encoder, times = ParameterEncoder(learner.network, threaded=True), []
    for _ in range(5):
        began = time.perf_counter()
        encoding = encoder.encode()
        begun = time.perf_counter()
        data = encoding.result(10.0)
        times.append((begun - began, time.perf_counter() - began))
    policy.load(parameters.decode(data))
    pairs = zip(learner.network.parameters(), policy.network.parameters())
    same = all(torch.equal(p.detach().cpu(), q.detach()) for p, q in pairs)
    copy_ms, encode_ms = (round(1e3 * min(each), 2) for each in zip(*times))
    return {"bytes": len(data), "copy_ms": copy_ms, "encode_ms": encode_ms, "ok": same}


def transfer_race() -> dict[str, Any]:
    """Batches that several threads bring while the device computes are what they were."""
    move, (size, width) = transfer_to(DEVICE), ((64, 4096) if CUDA else (4, 64))
    busy = torch.randn(width, width, device=DEVICE)

    def bring(seed: int) -> tuple[Any, dict[str, float]]:
        rng = np.random.default_rng(seed)
        raw = bytearray(rng.integers(0, 256, size * 7 * 84 * 84, dtype=np.uint8).tobytes())
        frames = torch.frombuffer(raw, dtype=torch.uint8).view(size, 7, 84, 84)
        batch = {
            "observation": frames[:, :4], "next_observation": frames[:, 3:],
            "n": torch.from_numpy(rng.random(size, np.float32)),
        }  # fmt: skip
        return move(batch), {name: float(t.double().sum()) for name, t in batch.items()}

    wrong, done, began = 0, 0, time.monotonic()
    with ThreadPoolExecutor(RACE_THREADS) as pool:
        pending = [pool.submit(bring, seed) for seed in range(2 * RACE_THREADS)]
        while time.monotonic() - began < RACE_SECONDS and done < 240:
            tensors, sums = pending.pop(0).result()
            busy = torch.tanh(busy @ busy * 1e-3)
            found = {name: tensors[name].double().sum() for name in sums}
            del tensors
            pending.append(pool.submit(bring, done + 2 * RACE_THREADS))
            wrong += any(abs(float(found[n]) - s) > 1e-6 * abs(s) for n, s in sums.items())
            done += 1
        for one in pending:
            one.cancel()
    rate = done / (time.monotonic() - began)
    return {"batches": done, "wrong": wrong, "batches_per_s": round(rate, 1), "ok": not wrong}


def host_copies() -> dict[str, Any]:
    """Asynchronous copies to the host have the values, in the order in which they were made."""
    values = torch.arange(1000.0, device=DEVICE)
    ring = HostCopies(DEVICE, unread=20)
    copies = [ring.copy(values * factor) for factor in range(20)]
    wrong = sum(not np.array_equal(c.read(), np.arange(1000.0) * k) for k, c in enumerate(copies))
    return {"copies": len(copies), "wrong": wrong, "ok": not wrong}


def not_finite() -> dict[str, Any]:
    """A NaN in a batch: the update is skipped and counted, and the network stays finite."""
    algorithm, (batch,) = played_batches("pong", 32)
    learner = algorithm.learner(DEVICE)
    priorities_of(learner, batch)
    returns = batch.n_step_return.clone()
    returns[3] = torch.nan
    update = learner.learn(batch._replace(n_step_return=returns), START)
    skipped, nan = float(update.metrics["skipped_updates"]), int(update.priorities.isnan().sum())
    good = learner.is_finite() and skipped == 1.0 and nan == 1
    return {"nan_priorities": nan, "skipped": skipped, "ok": good}


def no_memory() -> dict[str, Any]:
    """A device without memory raises apex's own error."""
    if not CUDA:
        return SKIPPED
    try:
        with process_tuning.memory_errors():
            torch.empty(1 << 42, dtype=torch.uint8, device=DEVICE)
    except DeviceMemoryError as error:
        return {"said": str(error)[:80]}
    return {"ok": False}


def synchronizations() -> dict[str, Any]:
    """Count the places at which one update waits for the device, as torch reports them."""
    if not CUDA:
        return SKIPPED
    algorithm, (batch,) = played_batches("pong", 64)
    learner, batch = algorithm.learner(DEVICE), transfer_to(DEVICE)(batch)
    for _ in range(3):
        learner.learn(batch, START)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            learner.learn(batch, START)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [one for one in caught if "synchroniz" in str(one.message)]
    places = [f"{os.path.basename(one.filename)}:{one.lineno}" for one in waits]
    return {"count": len(places), "places": places, "ok": not places}


def acting_on_device() -> dict[str, Any]:
    """The inference server's policy on the device decides as on the CPU."""
    algorithm, (batch,) = played_batches("pong", 64)
    here, there = algorithm.policy(), algorithm.policy()
    there.to(DEVICE)
    there.load({name: t.clone() for name, t in here.network.state_dict().items()})
    frames, nothing = batch.observation.contiguous().numpy(), np.zeros(64, np.float32)
    inputs = Inputs(frames, np.zeros((64, 0), np.float32), nothing, nothing)
    one, two = here.act(inputs, None), there.act(inputs, None)
    error = relative(two.extras["max_q"], one.extras["max_q"])
    same = float((one.actions == two.actions).mean())
    return {"error": round(error, 6), "same_actions": same, "ok": error < TOLERANCE}


CHECKS: tuple[tuple[str, Callable[[], dict[str, Any]]], ...] = (
    ("machine", machine),
    ("dqn pong, 84x84", learner_beside_cpu("pong", 64)),
    ("dqn pong, 84x84, graph", graph_beside_eager("pong", 64)),
    ("update_that_waits", update_that_waits),
    ("recorded_again", recorded_again),
    ("transfer_race", transfer_race),
    ("host_copies", host_copies),
    ("checkpoint_round_trip", checkpoint_round_trip),
    ("publication", publication),
    ("not_finite", not_finite),
    ("synchronizations", synchronizations),
    ("ceilings", lambda: ceilings(DEVICE) if CUDA else SKIPPED),
    ("acting_on_device", acting_on_device),
    ("no_memory", no_memory),
    ("dqn breakout, rmsprop", learner_beside_cpu("breakout", 32)),
    ("dqn cartpole", learner_beside_cpu("cartpole", 32)),
    ("impala cartpole", learner_beside_cpu("cartpole-impala", 16)),
    ("r2d2 cartpole", learner_beside_cpu("cartpole-r2d2", 16)),
    ("dpg pendulum", learner_beside_cpu("pendulum-dpg", 64)),
    ("impala cartpole, graph", graph_beside_eager("cartpole-impala", 16)),
    ("r2d2 cartpole, graph", graph_beside_eager("cartpole-r2d2", 16)),
    ("dpg pendulum, graph", graph_beside_eager("pendulum-dpg", 64)),
    ("impala pong", learner_beside_cpu("pong-impala", 8)),
    ("r2d2 pong", learner_beside_cpu("pong-r2d2", 4)),
)


def main() -> int:
    """Run all checks; the exit status is 1 if one has failed."""
    process_tuning.set_up(1)
    process_tuning.pick_device("auto")
    if CUDA:
        began = time.monotonic()
        torch.zeros(1, device=DEVICE)
        emit(check="cuda_context", ok=True, seconds=round(time.monotonic() - began, 2))
    failed = 0
    for name, function in CHECKS:
        if left_s() < 3.0:
            emit(check=name, ok=None, skipped="no time left")
        else:
            failed += not check(name, function)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
