"""Every message in every role at every endpoint: what is not permitted is refused."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import pytest
import zmq

from apex.config import merge, parse
from apex.endpoints import Endpoints, LearnerEndpoints, ReplayEndpoints
from apex.learner.params_server import ParamsServer
from apex.params import PublicationBoard
from apex.replay.server import ReplayServer
from apex.run_directory import RunFacts
from apex.types import Array
from apex.wire.codec import decode, encode
from apex.wire.messages import Error, Hello, Message, Role
from apex.wire.sockets import context
from tests.builders import VECTOR_SCHEMA, env_spec, hello, wait_until
from tests.test_codec import EVERY_MESSAGE

PERMITTED = {
    ("replay.insert", "actor"): {"Insert"},
    ("replay.sample", "learner"): {"Sample", "UpdatePriorities", "Snapshot"},
    ("replay.sample", "operator"): {"Status", "Shutdown", "Snapshot"},
    ("learner.params", "actor"): {"GetParams", "Heartbeat"},
    ("learner.params", "evaluator"): {"GetParams", "Heartbeat", "EvaluationReport"},
    ("learner.params", "operator"): {"Status", "Shutdown", "Snapshot"},
}
"""As PROTOCOL.md says; a role that is not here is not greeted at the endpoint."""
MESSAGES = [message for message in EVERY_MESSAGE if not isinstance(message, Hello)]


class House:
    """Both servers of a suite, in this process."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.endpoints = Endpoints(
            ReplayEndpoints(f"ipc://{folder}/i", f"ipc://{folder}/s"),
            LearnerEndpoints(f"ipc://{folder}/p"),
        )
        raw = {"env": {"id": "X-v0"}, "algorithm": {"name": "apex_dqn"},
               "replay": {"capacity": 100, "min_size": 1, "durability": "off"},
               "actor": {"chunk_length": 2},
               "learner": {"batch_size": 4, "prefetch": 1}}  # fmt: skip
        facts = RunFacts("run", env_spec((3,), "float32"), VECTOR_SCHEMA)
        config = parse(merge(raw, {}))
        self.replay = ReplayServer(
            config, self.endpoints, facts, lambda: None, folder / "replay", clock_ns=lambda: 0
        )
        stack.callback(self.replay.close)
        self.learner = ParamsServer(
            self.endpoints, facts, 1, 0, {}, PublicationBoard(),
            status=dict, on_evaluation=lambda mean: None, on_shutdown=lambda: None,
            on_snapshot=lambda: None,
        )  # fmt: skip
        self.learner.start()
        stack.callback(self.learner.close)

    def codes(self, endpoint: str, role: str, message: Message | None) -> list[str]:
        """The errors that answer a greeting and a message."""
        with context().socket(zmq.DEALER) as socket:
            socket.connect(self.endpoints.of(endpoint).address)
            arrays: dict[str, Array] = {}
            socket.send_multipart(encode(hello(f"{role}_000", role)))
            if message is not None:
                socket.send_multipart(encode(message, arrays))
            socket.send_multipart([b"the end"])
            found: list[str] = []

            def turn() -> None:
                self.replay.turn(0.001)
                while socket.poll(1):
                    reply = decode(socket.recv_multipart()).message
                    if isinstance(reply, Error):
                        found.append(reply.code)

            wait_until(lambda: "malformed" in found, turn)
            return found[:-1]


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with ExitStack() as stack:
        yield House(tmp_path_factory.mktemp("house"), stack)


@pytest.mark.parametrize("endpoint", ["replay.insert", "replay.sample", "learner.params"])
@pytest.mark.parametrize("role", get_args(Role))
def test_a_role_may_send_what_the_protocol_permits_and_nothing_else(house, endpoint, role):
    allowed = PERMITTED.get((endpoint, role))
    greeted = house.codes(endpoint, role, None)
    assert greeted == ([] if allowed is not None else ["not_permitted"])
    for message in MESSAGES:
        codes = house.codes(endpoint, role, message)
        if allowed is None:
            assert codes == ["not_permitted", "hello_required"], message
        elif type(message).__name__ in allowed:
            assert "not_permitted" not in codes, message
        else:
            assert codes == ["not_permitted"], message


def test_every_permission_was_tried():
    names = {type(message).__name__ for message in MESSAGES}
    assert set().union(*PERMITTED.values()) <= names
