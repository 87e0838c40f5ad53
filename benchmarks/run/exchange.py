"""Message exchange with bare ZeroMQ: a ROUTER that answers, and DEALERs that keep asking."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Sequence
from typing import Any

import zmq  # noqa: TID251

from benchmarks.run import cores
from benchmarks.run.workers import Step

Frames = Sequence[bytes]
POLL_MS = 100


class Answerer:
    """A process that answers each message with the frames stored for its first frame.

    Args:
        address: where it binds.
        answers: frames by first frame.
        kept_to: its cores.
    """

    def __init__(self, address: str, answers: dict[bytes, Frames], kept_to: Iterable[int]) -> None:
        context = multiprocessing.get_context("spawn")
        self._process = context.Process(
            target=_answer, args=(address, answers, list(kept_to)), daemon=True
        )
        self._process.start()

    def __enter__(self) -> Answerer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.join()


def _answer(address: str, answers: dict[bytes, Frames], kept_to: list[int]) -> None:
    cores.start_on(kept_to)
    router = zmq.Context().socket(zmq.ROUTER)
    router.bind(address)
    while True:
        identity, kind, *_ = router.recv_multipart(copy=False)
        router.send_multipart([identity.bytes, *answers[kind.bytes]], copy=False)


def exchanging(address: str, message: Frames, clients: int, in_flight: int, worth: int) -> Step:
    """Step that counts answered messages.

    Args:
        address: of an `Answerer`.
        message: its frames.
        clients: DEALERs.
        in_flight: unanswered messages per client.
        worth: units of work that one answer counts as.
    """
    context, poller = zmq.Context(), zmq.Poller()
    for _ in range(clients):
        dealer = context.socket(zmq.DEALER)
        dealer.connect(address)
        poller.register(dealer, zmq.POLLIN)
        for _ in range(in_flight):
            dealer.send_multipart(message, copy=False)

    def step() -> float:
        answered = 0
        for dealer, _ in poller.poll(POLL_MS):
            while _received(dealer):
                dealer.send_multipart(message, copy=False)
                answered += 1
        return answered * worth

    return step


def _received(dealer: Any) -> bool:
    try:
        dealer.recv_multipart(zmq.NOBLOCK, copy=False)
    except zmq.Again:
        return False
    return True
