"""The faults of `make chaos`, and the wait until the suite has recovered from each."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from apex.daemons.operator_client import ask
from apex.daemons.replay.insert_endpoint import CREDITS
from apex.daemons.restart_backoff import SHORT_LIFE_S
from apex.daemons.status.reports import LearnerAnswer, ReplayReport
from apex.launch import engine
from apex.replay.log.records import segments
from apex.runs import engine_record
from apex.runs.directory import RunDirectory
from tests.support.builders import fill, mount_tmpfs, unmount
from tests.tools.ledger import ITEMS, Audit, Identity, Insert, Producer, audit, inserts

MOVED_CLOCK = str(Path(__file__).parent / "moved_clock")
APEX = str(Path(sys.executable).with_name("apex"))
SETTINGS = (
    "replay.capacity=100000", "replay.min_size=500", "replay.segment_mb=1.0",
    "replay.save_period_s=1.0", "replay.samples_per_insert=2.0", "actor.num_envs=2",
    "evaluator.num_envs=2", "evaluator.episodes=2", "learner.checkpoint_period_s=3.0",
)  # fmt: skip
CAPACITY = 100_000
DISK_MB = 64
RECOVERY_LIMIT_S = 60.0


class Chaos:
    """One suite, its ledger, and the faults injected into it.

    Args:
        folder: for the run.
        seed: seeds the choice of faults.
        durability: `replay.durability`.
    """

    def __init__(self, folder: Path, seed: int, durability: str = "log") -> None:
        self._run = RunDirectory(folder / "run")
        self._scratch = folder / "audited"
        self._clock = folder / "clock"
        self._clock.write_text("+0000")
        self._clock.chmod(0o600)
        self._own_disk = False
        """Whether the insert log is on its own small file system."""
        self._durability = durability
        self._rng = np.random.default_rng(seed)
        self._producers = [
            Producer(self._run, n, lives_s=7.0 + 5 * n, pause_s=0.02) for n in (0, 1)
        ]
        self._last_death: dict[str, float] = {}
        self._crashes: Counter[str] = Counter()
        self._sacrificed: dict[Insert, int] = {}
        self._holes: list[tuple[int, int]] = []
        """Items of everybody that are missing for a known reason, and how many came before."""
        self._not_durable = 0
        """Most items of the ledger that full disks can have kept from being durable."""
        self.unexplained = 0
        self.recoveries: dict[str, list[float]] = defaultdict(list)
        self.audits: list[Audit] = []
        self.lost: set[Identity] = set()
        self.duplicated: set[Identity] = set()
        self.altered = 0

    def start(self) -> None:
        """Start the suite and the ledger's producers."""
        settings = (*SETTINGS, f"replay.durability={self._durability}")
        self._apex("run", "--preset", "cartpole", "--actors", "1", "--engine", "none",
                   *(word for setting in settings for word in ("--set", setting)))  # fmt: skip
        self._run.replay.mkdir(mode=0o700)
        self._own_disk = mount_tmpfs(self._run.replay, DISK_MB)
        self._apex("run", "--resume", "--detach")
        for producer in self._producers:
            producer.start()
        self._until(self._learning_since(0), "the suite learns")

    def end(self) -> None:
        """Audit once more and stop everything."""
        try:
            for producer in self._producers:
                producer.stop()
                if producer.is_alive():
                    producer.join()
            engine.stop(self._run, timeout_s=60.0)
            self.audit()
        finally:
            if self._own_disk:
                shutil.copytree(self._run.replay, self._run.path / "replay_at_the_end")
                unmount(self._run.replay)

    def _apex(self, *words: str) -> None:
        command = [APEX, *words, "--run", str(self._run.path)]
        environment = {
            **os.environ, "PYTHONPATH": MOVED_CLOCK, "APEX_TEST_CLOCK": str(self._clock)
        }  # fmt: skip
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")

    def _until(self, condition: Callable[[], bool], what: str) -> float:
        """Wait until a condition holds; returns the seconds that it took."""
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > RECOVERY_LIMIT_S:
                raise RuntimeError(f"not within {RECOVERY_LIMIT_S:g} s: {what}")
            time.sleep(0.05)
        return time.monotonic() - began

    def acknowledged(self) -> int:
        """Number of inserts whose acknowledgement the producers have received."""
        ledgers = [producer.acknowledged() for producer in self._producers]
        return sum(len(seqs) for ledger in ledgers for seqs in ledger.values())

    def _learning_since(self, step: int) -> Callable[[], bool]:
        return lambda: self._learner_step() > step

    def _learner_step(self) -> int:
        status = ask(self._run, "learner.params", LearnerAnswer)
        return -1 if status is None else status.learner.learner_step

    def audit(self) -> Audit:
        """Compare ledger and table; items damaged on purpose do not count as lost."""
        result = audit(self._run, self._producers, self._scratch)
        names = {(f"ledger_{number}", epoch, seq) for number, epoch, seq, _ in result.lost}
        excused = names & self._sacrificed.keys()
        result.lost = [i for i in result.lost if (f"ledger_{i[0]}", *i[1:3]) not in excused]
        still_open = [items for at, items in self._holes if result.inserted < at + items + CAPACITY]
        self.unexplained = max(self.unexplained, result.holes - sum(still_open))
        self.audits.append(result)
        self.lost.update(result.lost)
        self.duplicated.update(result.duplicated)
        self.altered += result.altered
        return result

    def fault(self) -> str:
        """Inject one fault, wait for the recovery, and record how long it took."""
        time.sleep(float(self._rng.uniform(0.0, 1.5)))
        now = time.monotonic()
        kinds = [kind for kind, fault in FAULTS.items() if not self._loops(fault, now)]
        weights = np.array([FAULTS[kind].weight for kind in kinds])
        kind = str(self._rng.choice(kinds, p=weights / weights.sum()))
        self.recoveries[kind].append(FAULTS[kind].inject(self))
        for daemon in FAULTS[kind].ends:
            self._crashes[daemon] = self._crashes_with(daemon, now)
            self._last_death[daemon] = time.monotonic()
        return kind

    def _loops(self, fault: Fault, now: float) -> bool:
        """Whether a daemon that this fault ends would back off as in a crash loop."""
        return any(self._crashes_with(daemon, now) > 1 for daemon in fault.ends)

    def _crashes_with(self, daemon: str, now: float) -> int:
        """Short lives in a row that a daemon would have if it died now."""
        short = now - self._last_death.get(daemon, float("-inf")) < SHORT_LIFE_S + 1.0
        return self._crashes[daemon] + 1 if short else 0

    def _signal(self, daemon: str, number: signal.Signals) -> int | None:
        pid = self._run.pid(daemon)
        if pid is not None:
            os.kill(pid, number)
        return pid

    def _comes_back(self, daemon: str, number: signal.Signals) -> float:
        """Signal a daemon; returns the seconds until it works again."""
        step, acknowledged = self._learner_step(), self.acknowledged()
        began = time.monotonic()
        pid = self._signal(daemon, number)
        self._until(lambda: self._run.pid(daemon) not in (None, pid), f"{daemon} is back")
        if daemon == "replay":
            self._until(lambda: self.acknowledged() > acknowledged + 2, "replay acknowledges")
        elif daemon == "learner":
            self._until(lambda: self._learner_step() > max(0, step - 3000), "the learner learns")
        elif daemon == "actor_000":
            self._until(self._actor_steps, "the actor steps")
        return time.monotonic() - began

    def _actor_steps(self) -> bool:
        status = ask(self._run, "learner.params", LearnerAnswer)
        rows = status.actors if status is not None else ()
        states = {row.actor_id: (row.pid, row.state) for row in rows}
        pid = self._run.pid("actor_000")
        return states.get("actor_000") in ((pid, "stepping"), (pid, "waiting_for_credit"))

    def kill(self, daemon: str) -> float:
        """SIGKILL."""
        seconds = self._comes_back(daemon, signal.SIGKILL)
        if daemon == "replay":
            self.audit()
        return seconds

    def terminate(self, daemon: str) -> float:
        """SIGTERM."""
        return self._comes_back(daemon, signal.SIGTERM)

    def pause(self, daemon: str) -> float:
        """SIGSTOP for a while, then SIGCONT; returns the seconds from there to recovery."""
        acknowledged = self.acknowledged()
        self._signal(daemon, signal.SIGSTOP)
        time.sleep(float(self._rng.uniform(0.5, 4.0)))
        self._signal(daemon, signal.SIGCONT)
        return self._until(lambda: self.acknowledged() > acknowledged, "inserts go on")

    def kill_all(self) -> float:
        """SIGKILL of all daemons at once."""
        step, acknowledged = self._learner_step(), self.acknowledged()
        began = time.monotonic()
        pids = {daemon: self._signal(daemon, signal.SIGKILL) for daemon in DAEMONS}
        self._until(
            lambda: all(self._run.pid(daemon) not in (None, pids[daemon]) for daemon in pids),
            "all are back",
        )
        self._until(lambda: self.acknowledged() > acknowledged + 2, "replay acknowledges")
        self._until(self._learning_since(max(0, step - 3000)), "the learner learns")
        seconds = time.monotonic() - began
        self.audit()
        return seconds

    def step_clock(self) -> float:
        """Step the wall clock of all processes of the run by up to an hour in either direction."""
        acknowledged, step = self.acknowledged(), self._learner_step()
        with self._clock.open("r+b", buffering=0) as file:  # in place: all processes read it
            file.write(b"%+05d" % self._rng.integers(-3600, 3600))
        began = time.monotonic()
        self._until(lambda: self.acknowledged() > acknowledged + 2, "inserts go on")
        self._until(self._learning_since(step), "the learner goes on")
        return time.monotonic() - began

    def kill_engine(self) -> float:
        """SIGKILL supervisord, wait until its daemons have ended, and resume the run."""
        began = time.monotonic()
        record = engine_record.living_engine(self._run)
        assert record is not None
        os.kill(record.pid, signal.SIGKILL)
        self._until(lambda: not self._run.living(), "all daemons are gone")
        self._apex("run", "--resume", "--detach")
        self._until(self._learning_since(0), "the suite learns again")
        return time.monotonic() - began

    def fill_disk(self) -> float:
        """Fill the insert log's disk for a while; returns the seconds until inserts are durable."""
        before = self._inserted()
        with self._full_disk():
            time.sleep(float(self._rng.uniform(0.0, 2.0)))
        seconds = self._until(self._durable, "inserts are durable again")
        now = self._inserted()
        self._holes.append((now, now - before))
        self._not_durable += now - before + CREDITS * ITEMS * len(self._producers)
        return seconds

    @contextmanager
    def _full_disk(self) -> Iterator[None]:
        """Fill the disk with a file or, where mounting is not allowed, limit the size of files."""
        pid = self._run.pid("replay") or 0
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        filler = self._run.replay / "filler"
        try:
            if self._own_disk:
                self._until(lambda: fill(filler) and not self._durable(), "the alarm")
            else:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
                self._until(lambda: not self._durable(), "the alarm")
            yield
        finally:
            filler.unlink(missing_ok=True)
            if not self._own_disk:
                resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)

    def _inserted(self) -> int:
        answers: list[int] = []

        def ask_once() -> bool:
            status = ask(self._run, "replay.sample", ReplayReport)
            answers.extend([] if status is None else [status.inserted])
            return bool(answers)

        self._until(ask_once, "replay answers")
        return answers[0]

    def _durable(self) -> bool:
        status = ask(self._run, "replay.sample", ReplayReport)
        return status is not None and status.durable

    def damage(self, how: str) -> float:
        """SIGKILL replay, and flip one byte of its log or truncate it before the restart."""
        acknowledged, began = self.acknowledged(), time.monotonic()
        pid = self._signal("replay", signal.SIGKILL)
        found = segments(self._run.replay)
        segment = found[-1] if how == "cut" else found[int(self._rng.integers(len(found)))]
        data = bytearray(segment.path.read_bytes())
        before = inserts(segment)
        position = int(self._rng.integers(max(1, len(data))))
        if how == "cut":
            os.truncate(segment.path, max(position, len(data) - 20_000))
        elif data:
            data[position] ^= 0x10
            segment.path.write_bytes(data)
        after = inserts(segment)
        gone = {insert: items for insert, items in before.items() if insert not in after}
        if how == "flip" and len(gone) > 1:
            gone = {}  # one byte may lose one record; more counts as lost
        self._sacrificed |= gone
        self._until(lambda: self._run.pid("replay") not in (None, pid), "replay is back")
        self._until(lambda: self.acknowledged() > acknowledged + 2, "replay acknowledges")
        seconds = time.monotonic() - began
        self._holes.append((self._inserted(), sum(gone.values())))
        self.audit()
        return seconds

    def damage_checkpoint(self) -> float:
        """SIGKILL the learner, and flip one byte of its newest checkpoint before the restart."""
        began, pid = time.monotonic(), self._signal("learner", signal.SIGKILL)
        found = sorted(self._run.checkpoints.glob("step_*/*"))
        if found:
            path = found[-1 - int(self._rng.integers(min(3, len(found))))]
            data = bytearray(path.read_bytes())
            data[int(self._rng.integers(len(data)))] ^= 0x10
            path.write_bytes(data)
        self._until(lambda: self._run.pid("learner") not in (None, pid), "the learner is back")
        self._until(self._learning_since(0), "the learner learns")
        return time.monotonic() - began

    @property
    def sacrificed(self) -> int:
        """Number of the ledger's items that were damaged on purpose."""
        return sum(items for (name, *_), items in self._sacrificed.items() if "ledger" in name)

    @property
    def clean(self) -> bool:
        """Whether every insert acknowledged as durable is present once or was evicted.

        Also requires that all inserts are durable, except those made while a disk was full.
        """
        volatile = self.audits[-1].volatile > self._not_durable
        return not (self.lost or self.duplicated or self.altered or self.unexplained or volatile)


class Fault(NamedTuple):
    """A fault's weight in the random choice, how to inject it, and the daemons that it ends."""

    weight: float
    inject: Callable[[Chaos], float]
    ends: tuple[str, ...] = ()


DAEMONS = ("replay", "learner", "actor_000", "evaluator")
FAULTS = {
    "SIGKILL replay": Fault(10, lambda chaos: chaos.kill("replay"), DAEMONS[:1]),
    "SIGKILL learner": Fault(4, lambda chaos: chaos.kill("learner"), DAEMONS[1:2]),
    "SIGKILL actor": Fault(6, lambda chaos: chaos.kill("actor_000"), DAEMONS[2:3]),
    "SIGKILL evaluator": Fault(1, lambda chaos: chaos.kill("evaluator"), DAEMONS[3:]),
    "SIGKILL all daemons": Fault(12, lambda chaos: chaos.kill_all(), DAEMONS),
    "SIGKILL supervisord": Fault(1, lambda chaos: chaos.kill_engine(), ("supervisord",)),
    "SIGTERM replay": Fault(1, lambda chaos: chaos.terminate("replay"), DAEMONS[:1]),
    "SIGTERM learner": Fault(1, lambda chaos: chaos.terminate("learner"), DAEMONS[1:2]),
    "SIGSTOP replay": Fault(2, lambda chaos: chaos.pause("replay")),
    "SIGSTOP learner": Fault(1, lambda chaos: chaos.pause("learner")),
    "SIGSTOP actor": Fault(1, lambda chaos: chaos.pause("actor_000")),
    "clock step": Fault(1, lambda chaos: chaos.step_clock()),
    "full disk": Fault(1, lambda chaos: chaos.fill_disk()),
    "damaged checkpoint": Fault(1, lambda chaos: chaos.damage_checkpoint(), DAEMONS[1:2]),
    "flipped byte": Fault(1, lambda chaos: chaos.damage("flip"), DAEMONS[:1]),
    "log cut off": Fault(1, lambda chaos: chaos.damage("cut"), DAEMONS[:1]),
}
