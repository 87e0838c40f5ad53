"""Environments, each in its own process: a slow, hung or dead one does not stop the others."""

from __future__ import annotations

import logging
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from apex.config.sections import EnvConfig
from apex.data.schema import Array, Arrays
from apex.envs.env_pipe import (
    Act,
    AnyPipeMessage,
    Begun,
    Failed,
    Made,
    Pipe,
    Reset,
    Setup,
    Stepped,
    observation_of,
    result_of,
)
from apex.envs.recreation import Backoff
from apex.envs.spec import EnvSpec, StepResult
from apex.errors import ConfigError, DecodeError

log = logging.getLogger("apex.envs")

MODULE = "apex.launch.env_process"
LONGEST_TURN_S = 1.0
"""Most seconds that count between two looks at the processes: an actor that was stopped, or waited
for credit, did not wait for its environments."""
CLOSE_S = 1.0
"""Seconds that all environments together have to close before their processes are killed."""


class LaneAnswer(NamedTuple):
    """What one environment has answered. At most one of the other fields is set."""

    lane: int
    """Index of the environment."""
    begun: Any = None
    """First observation `[1, *observation_shape]` after a reset."""
    result: StepResult | None = None
    """Result of a step, of one environment. Without both, the environment has failed: its episode
    is over, and it begins again later."""


@dataclass
class _Lane:
    """One environment: its process, what it is asked for, and its failures."""

    index: int
    backoff: Backoff
    process: subprocess.Popen[bytes] | None = None
    pipe: Pipe | None = None
    asked: str = ""
    """Request that the process has not answered yet, such as `step`; empty: none."""
    waited_s: float = 0.0
    """Seconds that its answer has been waited for."""
    faults: int = 0
    due: float = float("-inf")
    """When to start a process, if there is none."""
    ending: list[subprocess.Popen[bytes]] = field(default_factory=list)
    """Processes that were killed and may not have ended yet."""


class AsyncEnvironments:
    """E environments, each stepped by a process of its own.

    A process that ends, or does not answer in time, is a fault of its environment alone.

    Args:
        config: the environment.
        num_envs: E.
        spec: what each environment must be like.
        timeout_s: seconds that making, resetting or stepping an environment may take.
        name: name of the actor, for log lines of the processes.
        extensions: a script's factory as of `pickle_extensions`, or nothing.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        config: EnvConfig,
        num_envs: int,
        spec: EnvSpec,
        timeout_s: float,
        *,
        name: str = "actor",
        extensions: bytes = b"",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_envs, self.spec = num_envs, spec
        self.faults = 0
        """Faults of all environments so far."""
        self._config, self._extensions, self._name = config, extensions, name
        self._timeout_s, self._clock = timeout_s, clock
        self._seed_of: Callable[[int], int] = lambda faults: 0
        self._lanes = [_Lane(index, Backoff(clock)) for index in range(num_envs)]
        self._selector = selectors.DefaultSelector()
        self._looked_at = clock()

    def start(self, seed_of: Callable[[int], int]) -> None:
        """Start all processes; each environment is reset as soon as it is made.

        Args:
            seed_of: the seed of the first environment after a number of faults; environment e gets
                the one after its own faults, + e. Without faults, these are the seeds of
                environments that are stepped together.
        """
        self._seed_of = seed_of
        for lane in self._lanes:
            self._start(lane)

    @property
    def working(self) -> int:
        """Number of environments that have a process."""
        return sum(lane.process is not None for lane in self._lanes)

    def pids(self) -> list[int | None]:
        """Process id of each environment; None while it waits to be made again."""
        return [None if lane.process is None else lane.process.pid for lane in self._lanes]

    def send(self, lanes: Sequence[int], actions: Array) -> None:
        """Ask environments for a step each.

        Args:
            lanes: their indices; each has answered its last request.
            actions: `[len(lanes), *action shape]`.

        Raises:
            ConfigError: an invalid action, which is the algorithm's fault, not the environment's.
        """
        bad = self.spec.bad_actions(actions)
        if bad.any():
            raise ConfigError(
                f"the algorithm chose the action {actions[bad][0]}, but {self.spec.env_id} takes "
                f"{self.spec.actions_text}; check its network's outputs and its exploration"
            )
        for row, index in enumerate(lanes):
            self._ask(self._lanes[index], "step", Act(), {"action": actions[row : row + 1]})

    def answers(self, wait_s: float) -> list[LaneAnswer]:
        """Answers that have arrived, one for each environment at most.

        Also restarts processes that are due, and ends those that have not answered in time.

        Args:
            wait_s: seconds to wait for the first answer.

        Raises:
            ConfigError: an action that a mask forbids, which is the algorithm's fault.
        """
        found: list[LaneAnswer] = []
        for key, _ in self._selector.select(wait_s):
            answer = self._read(key.data)
            if answer is not None:
                found.append(answer)
        now = self._clock()
        turn_s, self._looked_at = min(now - self._looked_at, LONGEST_TURN_S), now
        for lane in self._lanes:
            lane.ending = [process for process in lane.ending if process.poll() is None]
            if lane.process is None:
                if now >= lane.due:
                    self._start(lane)
            elif lane.asked:
                if lane.pipe is not None:
                    with suppress(OSError):
                        lane.pipe.flush()
                lane.waited_s += turn_s
                if lane.waited_s > self._timeout_s:
                    late = f"{lane.asked} took more than {self._timeout_s:g} s"
                    found.append(self._fail(lane, f"{late} (actor.env_timeout_s); killed it"))
        return found

    def _read(self, lane: _Lane) -> LaneAnswer | None:
        """The answer of a readable pipe, if it is complete."""
        assert lane.pipe is not None
        try:
            received = lane.pipe.receive()
            return None if received is None else self._on_message(lane, *received)
        except EOFError:
            return self._fail(lane, f"its process ended ({_how(lane.process)})")
        except (DecodeError, ValueError) as error:
            return self._fail(lane, f"its process sent an invalid message ({error})")

    def _on_message(
        self, lane: _Lane, message: AnyPipeMessage, arrays: Arrays
    ) -> LaneAnswer | None:
        lane.asked = ""
        if isinstance(message, Failed):
            if message.of_algorithm:
                raise ConfigError(message.reason)
            return self._fail(lane, message.reason)
        if isinstance(message, Made):
            if differing := message.spec.differences(self.spec):
                return self._fail(lane, f"it has {', '.join(differing)}")
            seed = self._seed_of(lane.faults) + lane.index
            self._ask(lane, "reset", Reset(seed=seed))
            return None
        if isinstance(message, Stepped):
            return LaneAnswer(lane.index, result=result_of(message, arrays))
        assert isinstance(message, Begun)
        return LaneAnswer(lane.index, begun=observation_of(arrays))

    def _start(self, lane: _Lane) -> None:
        """Start a lane's process and ask it to make the environment."""
        ours, theirs = socket.socketpair()
        quiet = lane.index > 0 or self.faults > 0
        command = [
            sys.executable, "-m", MODULE, str(theirs.fileno()), str(os.getpid()),
            f"{self._name}.{lane.index}", str(int(quiet)),
        ]  # fmt: skip
        # The user's module may be found on a path that this process has added.
        paths = os.pathsep.join(filter(None, sys.path))
        environ = {"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": paths}
        with theirs:
            lane.process = subprocess.Popen(
                command, env=environ, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )
        ours.setblocking(False)
        lane.pipe = Pipe(ours)
        self._selector.register(ours, selectors.EVENT_READ, lane)
        self._ask(lane, "making", Setup(env=self._config, extensions=self._extensions))

    def _ask(
        self, lane: _Lane, what: str, message: Any, arrays: dict[str, Array] | None = None
    ) -> None:
        lane.asked, lane.waited_s = what, 0.0
        if lane.pipe is not None:
            with suppress(OSError):  # its process has ended: the pipe says so when it is read
                lane.pipe.send(message, arrays)

    def _fail(self, lane: _Lane, what: str) -> LaneAnswer:
        """End a lane's process, and have another one started after a delay."""
        self._end(lane)
        self.faults += 1
        lane.faults += 1
        delay = lane.backoff.next()
        lane.due = self._clock() + delay
        log.error(
            "environment %d: %s; recreating it in %.0f s (fault %d)",
            lane.index, what, delay, self.faults,
        )  # fmt: skip
        return LaneAnswer(lane.index)

    def _end(self, lane: _Lane) -> None:
        """Kill a lane's process and forget its pipe."""
        if lane.pipe is not None:
            self._selector.unregister(lane.pipe.connection)
            lane.pipe.close()
        if lane.process is not None:
            lane.process.kill()
            lane.ending.append(lane.process)
        lane.pipe, lane.process, lane.asked = None, None, ""

    def close(self) -> None:
        """Let the environments close, and kill the processes of those that take too long."""
        for lane in self._lanes:
            if lane.pipe is not None:
                self._selector.unregister(lane.pipe.connection)
                lane.pipe.close()
                lane.pipe = None
        deadline = self._clock() + CLOSE_S
        for lane in self._lanes:
            if lane.process is not None:
                with suppress(subprocess.TimeoutExpired):
                    lane.process.wait(max(0.0, deadline - self._clock()))
            self._end(lane)
            for process in lane.ending:
                process.wait()
        self._selector.close()


def _how(process: subprocess.Popen[bytes] | None) -> str:
    """How a process ended, for messages."""
    assert process is not None
    with suppress(subprocess.TimeoutExpired):
        code = process.wait(0.5)
        return f"signal {-code}" if code < 0 else f"exit code {code}"
    return "it closed its pipe"
