"""Sample ready batches from Reverb."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import reverb
import tensorflow as tf

from benchmarks.peers.loops.reverb_server import TABLE
from benchmarks.peers.loops.serve import Step, serve

Keys = npt.NDArray[np.uint64]
SHAPES = {"action": (), "n_step_return": (), "discount": (), "frames": (7, 84, 84)}
DTYPES = {"action": tf.int32, "n_step_return": tf.float32, "discount": tf.float32,
          "frames": tf.uint8}  # fmt: skip


def ready_batches(address: str, batch: int, in_flight: int, workers: int) -> Iterator[Keys]:
    """Batches by Reverb's C++ sampler through tf.data."""
    dataset = reverb.TrajectoryDataset(
        address,
        TABLE,
        DTYPES,
        {name: tf.TensorShape(shape) for name, shape in SHAPES.items()},
        max_in_flight_samples_per_worker=in_flight,
        num_workers_per_iterator=workers,
    )
    for sample in dataset.batch(batch, drop_remainder=True).prefetch(2).as_numpy_iterator():
        assert sample.data["frames"].shape == (batch, *SHAPES["frames"])
        yield sample.info.key


def sampling(port: int, batch: int, in_flight: int, workers: int, returns_priorities: bool) -> Step:
    """Step that samples a batch and, on request, returns new priorities; counts items."""
    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    address = f"localhost:{port}"
    client, rng = reverb.Client(address), np.random.default_rng(1)
    batches = ready_batches(address, batch, in_flight, workers)

    def step() -> dict[str, float]:
        keys = next(batches).tolist()
        if returns_priorities:
            client.mutate_priorities(TABLE, updates=dict(zip(keys, rng.random(batch).tolist())))
        return {"items": batch}

    return step


if __name__ == "__main__":
    serve(sampling)
