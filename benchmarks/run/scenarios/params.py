"""Parameters to 32 clients, compared with bare ZeroMQ, and their cost to the learner."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import zmq  # noqa: TID251
from zlib_ng import zlib_ng

from apex.daemons.learner.client import LearnerClient
from apex.daemons.learner.parameter_server import ParameterServer
from apex.daemons.learner.parameter_versions import Publication, PublicationBoard
from apex.daemons.status.reports import LearnerReport
from apex.host import process_tuning
from apex.networks import parameters
from apex.runs.directory import RunDirectory
from apex.wire.messages import MAX_COUNT
from apex.wire.sockets import Poller
from benchmarks.run import cores
from benchmarks.run.daemons import Daemons, pong_run, until
from benchmarks.run.exchange import Answerer
from benchmarks.run.figures import Figure, figure, in_turn
from benchmarks.run.pong import algorithm_of, fill, hello, record
from benchmarks.run.scenarios.learner import ITEMS, learner_steps, settings
from benchmarks.run.workers import Step, Worker

CLIENTS = 32
SECONDS = 2.0
LEARNING_S = 5.0
BATCH = 32
ASK_PERIOD_S = 0.075
"""Seconds in which 16 environments make the 100 steps after which their actor asks."""
LIMIT = f"ZeroMQ moving the same bytes to {CLIENTS} peers"


class Members:
    """Clients of `learner.params`, each with a policy that loads the parameters."""

    def __init__(self, run: RunDirectory) -> None:
        endpoint, algorithm = run.endpoints().of("learner.params"), algorithm_of(run)
        self.clients = [
            LearnerClient(endpoint, hello(run, "actor", f"actor_{k:03d}")) for k in range(CLIENTS)
        ]
        self._policies = [algorithm.policy() for _ in self.clients]
        self._poller = Poller(*(client.client for client in self.clients))

    def poll(self) -> None:
        """Process the messages that have arrived."""
        self._poller.wait(0.02)
        for client, policy in zip(self.clients, self._policies):
            publication = client.poll()
            if publication is not None:
                policy.load(parameters.decode(publication.data))

    def ask(self, version: int = MAX_COUNT) -> bool:
        """Ask again for each client without this version. Returns whether there was one."""
        behind = [client for client in self.clients if client.param_version < version]
        for client in behind:
            client.ask_for_params()
        return bool(behind)


def no_report() -> LearnerReport:
    """Not used: nobody asks this server for a status."""
    raise NotImplementedError


def publish(path: Path, pipe: Connection) -> None:
    """Process that publishes the network each time it is asked to."""
    cores.start_on(cores.AVAILABLE)
    process_tuning.set_up(1)
    run, board = RunDirectory(path), PublicationBoard()
    network = algorithm_of(run).policy().network
    server = ParameterServer(
        run.endpoints(), run.facts(), CLIENTS, 0, {}, board, status=no_report,
        on_evaluation=print, on_snapshot=print,
    )  # fmt: skip
    server.start()
    for version in _told(pipe):
        data = parameters.encode(network)
        board.put(Publication(version, version, 0, 0.0, data, zlib_ng.crc32(data)))
        pipe.send(version)


def _told(pipe: Connection) -> Iterator[int]:
    try:
        while True:
            yield pipe.recv()
    except EOFError:
        return


def using(path: Path) -> Step:
    """Step of one publication, until all clients have loaded it."""
    process_tuning.set_up(1)
    context = multiprocessing.get_context("spawn")
    pipe, theirs = context.Pipe()
    context.Process(target=publish, args=(path, theirs), daemon=True).start()
    members = Members(RunDirectory(path))
    version = 0

    def step() -> float:
        nonlocal version
        version += 1
        pipe.send(version)
        pipe.recv()
        while members.ask(version):
            members.poll()
        return 1

    return step


def moving(address: str) -> Step:
    """Step that sends as many bytes to as many ZeroMQ clients."""
    context = zmq.Context()
    dealers = [context.socket(zmq.DEALER) for _ in range(CLIENTS)]
    for dealer in dealers:
        dealer.connect(address)

    def step() -> float:
        for dealer in dealers:
            dealer.send(b"get")
        for dealer in dealers:
            dealer.recv_multipart(copy=False)
        return 1

    return step


def fetching(path: Path) -> Step:
    """Clients that ask as often as actors do."""
    process_tuning.set_up(1)
    members = Members(RunDirectory(path))
    asked = 0.0

    def step() -> float:
        nonlocal asked
        if time.monotonic() - asked > ASK_PERIOD_S:
            asked = time.monotonic()
            members.ask()
        members.poll()
        return 1

    return step


def latency(folder: Path) -> Figure:
    """Time from publication until the last client has loaded the parameters."""
    run = pong_run(folder / "latency", [f"actor.count={CLIENTS}"])
    data = parameters.encode(algorithm_of(run).policy().network)
    address = f"ipc://{folder}/bare.sock"
    with (
        Answerer(address, {b"get": [data]}, cores.AVAILABLE),
        Worker(moving, cores.AVAILABLE, address) as bare,
        Worker(using, cores.AVAILABLE, run.path, daemon=False) as ours,
    ):
        pairs = in_turn(lambda: 1e3 / ours.measure(SECONDS), lambda: 1e3 / bare.measure(SECONDS))
    case = f"publication to use by the last of {CLIENTS}"
    return figure(case, "ms", pairs, LIMIT, bar=1.5, lower_is_better=True, bytes=len(data))


def cost(folder: Path) -> Figure:
    """Updates per second while all clients fetch each publication, compared with no clients."""
    run = pong_run(folder / "cost", [*settings(BATCH), f"actor.count={CLIENTS}"])
    with Daemons(run) as daemons:
        daemons.replay(cores.OTHERS)
        daemons.learner(cores.OTHERS, cores.TRAINING)
        asker = daemons.asker("learner.params")
        fill(run, record(run, ITEMS // 4), ITEMS)
        until(lambda: learner_steps(asker.status()) > 2, "the learner trains")
        with Worker(fetching, cores.OTHERS, run.path) as clients:

            def alone() -> float:
                return asker.rate(learner_steps, LEARNING_S)

            def served() -> float:
                clients.begin(LEARNING_S)
                rate = alone()
                clients.rate()
                return rate

            pairs = in_turn(served, alone)
        daemons.check()
    return figure(f"updates with {CLIENTS} clients", "updates/s", pairs, "the learner alone",
                  bar=0.98)  # fmt: skip


def measure(folder: Path) -> Sequence[Figure]:
    """Measure all cases."""
    return [latency(folder), cost(folder)]
