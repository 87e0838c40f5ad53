"""Process that steps one environment; an actor with `actor.async_envs` starts it.

`python -m apex.launch.env_process DESCRIPTOR PARENT NAME QUIET`: the socket to the actor, the
actor's process id, the name in log lines, and 1 if only errors are logged.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import sys
from contextlib import suppress

from apex.daemons.log_format import log_to_stderr
from apex.daemons.service import PR_SET_PDEATHSIG
from apex.data.observations import to_columns
from apex.envs.base import Environments
from apex.envs.env_pipe import (
    Act,
    Begun,
    Failed,
    Made,
    Pipe,
    Reset,
    Setup,
    Stepped,
)
from apex.envs.recreation import close
from apex.envs.registry import make_environments
from apex.errors import ApexError, ConfigError
from apex.host.orphans import mark_own_children
from apex.launch.pickled_extensions import unpickle_extensions


def serve(pipe: Pipe) -> None:
    """Make an environment, and step it as the actor asks, until the actor closes the pipe."""
    environments: Environments | None = None
    try:
        with suppress(EOFError):
            environments = _make(pipe)
            pipe.send(Made(spec=environments.spec))
            while True:
                _answer(pipe, environments)
    except ApexError as error:
        with suppress(OSError):
            pipe.send(Failed(reason=str(error), of_algorithm=isinstance(error, ConfigError)))
    except OSError:  # the actor has gone
        pass
    finally:
        close(environments)


def _make(pipe: Pipe) -> Environments:
    received = pipe.receive()
    assert received is not None and isinstance(received[0], Setup)
    setup = received[0]
    factory = unpickle_extensions(setup.extensions).make_env
    return make_environments(setup.env, 1, factory)


def _answer(pipe: Pipe, environments: Environments) -> None:
    """Do what the next message asks for."""
    received = pipe.receive()
    assert received is not None
    message, arrays = received
    if isinstance(message, Reset):
        pipe.send(Begun(), to_columns(environments.reset(message.seed)))
    elif isinstance(message, Act):
        result = environments.step(arrays["action"])
        pipe.send(
            Stepped(
                reward=float(result.rewards[0]),
                terminated=bool(result.terminated[0]),
                truncated=bool(result.truncated[0]),
                life_lost=bool(result.life_lost[0]),
                metrics={name: float(value[0]) for name, value in result.metrics.items()},
            ),
            to_columns(result.observations),
        )


def main() -> None:
    """Entry point: ends with the actor, also when that is killed."""
    descriptor, parent, name, quiet = sys.argv[1:]
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the engine
    mark_own_children()
    log_to_stderr(name)
    if int(quiet):
        logging.getLogger().setLevel(logging.ERROR)
    serve(Pipe(socket.socket(fileno=int(descriptor))))


if __name__ == "__main__":
    main()
