"""Sample Factory's APPO on Pong, in its own processes."""

from __future__ import annotations

import os
import threading
from typing import Any

import ale_py  # noqa: F401, registers Pong, also in the processes that are spawned
from sample_factory.algo.runners.runner import Runner
from sample_factory.algo.utils.misc import LEARNER_ENV_STEPS, SAMPLES_COLLECTED
from sample_factory.train import make_runner
from sf_examples.atari.train_atari import parse_atari_args, register_atari_components

from benchmarks.peers.loops.serve import options, serve

FRAME_SKIP = 4
PERIODIC_S = 100_000
"""Period of checkpoints and summaries, longer than any measurement."""


class Counts:
    """Counts of a runner, read at the moments at which they change."""

    def __init__(self) -> None:
        self._changed = threading.Event()
        self._done = {"env_steps": 0.0, "trained_samples": 0.0}
        self._learned = 0.0

    def listen_to(self, runner: Runner) -> None:
        """Count from now on."""
        runner.policy_msg_handlers[SAMPLES_COLLECTED].append(self._collected)
        runner.policy_msg_handlers[LEARNER_ENV_STEPS].append(self._trained)

    def _collected(self, runner: Runner, message: dict[str, Any], policy_id: int) -> None:
        self._done["env_steps"] += message[SAMPLES_COLLECTED]
        if self._done["trained_samples"]:
            self._changed.set()

    def _trained(self, runner: Runner, message: dict[str, Any], policy_id: int) -> None:
        now = message[LEARNER_ENV_STEPS] / FRAME_SKIP
        self._done["trained_samples"] += now - self._learned
        self._learned = now

    def step(self) -> dict[str, float]:
        """Wait for the samplers' report, every 3 s. Returns the work done since the last call."""
        self._changed.wait()
        self._changed.clear()
        done = dict(self._done)
        for kind, count in done.items():
            self._done[kind] -= count
        return done


def train(train_dir: str, rollout: int, batch: int, **settings: Any) -> None:
    """Train with APPO and serve its counts until the process is ended.

    Args:
        train_dir: folder for its files.
        rollout: steps of an environment that are learned from together.
        batch: env steps per update.
        settings: other settings of Sample Factory.
    """
    given = {
        "env": "atari_pong", "experiment": f"peer_{os.getpid()}", "train_dir": train_dir,
        "device": "cpu", "normalize_input": False, "async_rl": True, "use_rnn": False, "seed": 1,
        "env_frameskip": FRAME_SKIP, "rollout": rollout, "recurrence": 1, "batch_size": batch,
        "num_batches_per_epoch": 1, "num_epochs": 1, "num_policies": 1,
        "train_for_env_steps": 10**12, "save_every_sec": PERIODIC_S,
        "experiment_summaries_interval": PERIODIC_S, "save_best_every_sec": PERIODIC_S,
        **settings,
    }  # fmt: skip
    register_atari_components()
    config = parse_atari_args([f"--{name}={value}" for name, value in given.items()])
    _, runner = make_runner(config)
    runner.init()
    counts = Counts()
    counts.listen_to(runner)
    threading.Thread(target=serve, args=(lambda **_: counts.step,), daemon=True).start()
    runner.run()  # needs the main thread
    raise SystemExit("Sample Factory ended unexpectedly; see its output above")


if __name__ == "__main__":
    train(**options())
