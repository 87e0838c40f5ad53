"""Server and Client over an ipc endpoint: greetings, refusals, restarts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import numpy as np
import pytest
import zmq

from apex.data.schema import Array
from apex.errors import PeerTimeoutError, RefusedError
from apex.wire.client import HELLO_RETRY_S, Client
from apex.wire.codec import Received, decode, encode
from apex.wire.endpoints import Endpoint
from apex.wire.messages import (
    PROTOCOL_VERSION,
    Ack,
    Error,
    GetParams,
    Hello,
    Insert,
    Message,
    NotModified,
    Status,
    StatusReply,
    Welcome,
)
from apex.wire.server import Peer, Request, Server
from apex.wire.sockets import Poller, Waker, context
from tests.support.builders import VECTOR_SCHEMA, hello
from tests.support.clock import Clock
from tests.support.waiting import wait_until

PERMISSIONS = {"actor": (GetParams,), "learner": (GetParams,), "operator": (Status,)}


class Connections:
    """A server that answers GetParams with NotModified, and clients; closed with the test."""

    def __init__(self, address: str, stack: ExitStack) -> None:
        self.address = address
        self.endpoint = Endpoint("replay.insert", address)
        self.now = 0.0
        self.taken: list[Request] = []
        self.clients: list[Client] = []
        self.received: dict[Client, list[Received]] = {}
        self._stack = stack
        self.open()

    def open(self) -> None:
        self.server = Server(
            self.endpoint, "run", VECTOR_SCHEMA.hash, PERMISSIONS, self.welcome,
            clock=lambda: self.now,
        )  # fmt: skip
        self._stack.callback(self.server.close)

    def restart(self) -> None:
        self.server.close()
        self.open()

    def welcome(self, peer: Peer) -> Welcome:
        if peer.hello.epoch < 0:
            raise RefusedError("a negative epoch", "superseded")
        return Welcome(instance=self.server.instance)

    def connect(self, greeting: Hello | None = None) -> Client:
        client = Client(self.endpoint, greeting or hello())
        self._stack.enter_context(closing(client))
        self.clients.append(client)
        self.received[client] = []
        return client

    def turn(self) -> None:
        Poller(self.server, *self.clients).wait(0.02)
        for request in self.server.receive():
            self.taken.append(request)
            if isinstance(request.message, GetParams):
                self.answer(request, NotModified())
            else:
                self.answer(request, StatusReply(status={"a": 1}))
        for client in self.clients:
            self.received[client] += client.receive()

    def answer(self, request: Request, message: Message) -> None:
        self.server.send(request.peer.identity, message, request.arrays)

    def until(self, condition) -> None:
        wait_until(condition, turn=self.turn)

    def messages(self, client: Client) -> list[Message]:
        return [received.message for received in self.received[client]]

    def ready(self, greeting: Hello | None = None) -> Client:
        client = self.connect(greeting)
        self.until(lambda: client.ready)
        return client


@pytest.fixture
def connections(tmp_path) -> Iterator[Connections]:
    with ExitStack() as stack:
        yield Connections(f"ipc://{tmp_path}/s", stack)


@contextmanager
def stranger(address: str) -> Iterator[zmq.Socket]:
    """A bare DEALER that sends no greeting."""
    socket = context().socket(zmq.DEALER)
    socket.connect(address)
    try:
        yield socket
    finally:
        socket.close(linger=0)


def answer_to(connections: Connections, socket: zmq.Socket, frames: list[bytes]) -> Message:
    socket.send_multipart(frames)
    wait_until(lambda: socket.poll(0), turn=connections.turn)
    return decode(socket.recv_multipart()).message


def test_greeted_client_sends_and_is_answered_with_its_arrays(connections):
    client = connections.ready()
    assert not connections.server.refused
    arrays: dict[str, Array] = {"x": np.arange(6.0).reshape(2, 3)}
    assert client.send(GetParams(newer_than=1), arrays)
    connections.until(lambda: len(connections.received[client]) == 2)
    assert isinstance(connections.messages(client)[0], Welcome)
    answer = connections.received[client][1]
    assert isinstance(answer.message, NotModified)
    np.testing.assert_array_equal(answer.arrays["x"], arrays["x"])
    assert connections.taken[0].peer.hello == hello()


def test_client_that_is_not_ready_sends_nothing(connections):
    client = connections.connect()
    assert not client.ready and not client.send(GetParams(newer_than=1))


def test_client_may_start_before_its_server(tmp_path):
    with ExitStack() as stack:
        early = Client(Endpoint("replay.insert", f"ipc://{tmp_path}/s"), hello())
        stack.enter_context(closing(early))
        assert early.receive() == []
        connections = Connections(f"ipc://{tmp_path}/s", stack)
        connections.clients.append(early)
        connections.received[early] = []
        connections.until(lambda: early.ready)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"run_id": "other"}, "wrong_run"),
        ({"schema_hash": "other"}, "wrong_schema"),
        ({"schema_hash": ""}, "wrong_schema"),
        ({"role": "evaluator"}, "not_permitted"),
        ({"protocol": 1}, "protocol_version"),
        ({"epoch": -1}, "superseded"),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_wrong_greeting_is_refused_with_a_code(connections, changes, code):
    client = connections.connect(hello(**changes))
    with pytest.raises(RefusedError) as error:
        connections.until(lambda: client.ready)
    assert error.value.code == code and str(error.value).startswith("replay.insert: ")
    assert connections.server.refused == {code: 1} and connections.server.peers == {}
    connections.clients.remove(client)
    assert connections.ready().ready


def test_operator_needs_no_schema_but_the_right_run(connections):
    assert connections.ready(hello("operator", "operator", schema_hash="")).ready
    other = connections.connect(hello("operator", "operator", run_id="other"))
    with pytest.raises(RefusedError, match="expected run run, got other"):
        connections.until(lambda: other.ready)


def test_message_that_a_role_may_not_send_is_refused(connections):
    client = connections.ready()
    client.send(Status())
    with pytest.raises(RefusedError) as error:
        connections.until(lambda: connections.taken)
    assert error.value.code == "not_permitted" and connections.taken == []


def test_message_without_a_greeting_is_refused(connections):
    with stranger(connections.address) as socket:
        answer = answer_to(connections, socket, [bytes(f) for f in encode(GetParams(newer_than=0))])
    assert isinstance(answer, Error) and answer.code == "hello_required"
    assert connections.taken == []


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([b""], "malformed"),
        ([b"\x80\x04\x95garbage", b"more"], "malformed"),
        ([bytes(encode(hello())[0])[:-3]], "malformed"),
        ([bytes(encode(hello())[0]), b"undeclared"], "malformed"),
        ([bytes(encode(hello(protocol=9))[0])], "protocol_version"),
    ],
    ids=["empty", "pickle", "truncated", "undeclared", "version"],
)
def test_malformed_message_is_answered_and_counted(connections, frames, code):
    with stranger(connections.address) as socket:
        answer = answer_to(connections, socket, frames)
    assert isinstance(answer, Error) and answer.code == code
    assert connections.server.refused[code] == 1
    assert connections.ready().ready


def test_empty_buffer_with_a_huge_shape_is_refused(connections):
    """An empty buffer with a dimension that is too large for any array."""
    import msgspec

    header = msgspec.msgpack.encode(
        {
            "type": "insert",
            "protocol": PROTOCOL_VERSION,
            "seq": 0,
            "buffers": [["x", "uint8", [0, 2**63]]],
        }
    )
    with stranger(connections.address) as socket:
        answer = answer_to(connections, socket, [header, b""])
    assert isinstance(answer, Error) and answer.code == "malformed"


def test_client_greets_a_restarted_server_again(connections):
    client = connections.ready()
    connections.restart()
    connections.until(lambda: len(connections.server.peers) == 1 and client.ready)
    instances = [m.instance for m in connections.messages(client) if isinstance(m, Welcome)]
    assert len(instances) == 2 and instances[0] != instances[1]
    assert client.send(GetParams(newer_than=0))
    connections.until(lambda: connections.taken)


def test_client_forgotten_by_the_server_greets_again(connections):
    client = connections.ready()
    connections.now += 60
    connections.turn()
    assert len(connections.server.peers) == 1
    connections.now += 61
    connections.turn()
    assert connections.server.peers == {}
    client.send(GetParams(newer_than=0))
    connections.until(lambda: len(connections.server.peers) == 1 and client.ready)
    assert connections.taken == [] and connections.server.refused == {"hello_required": 1}
    client.send(GetParams(newer_than=0))
    connections.until(lambda: connections.taken)


def test_greeting_without_an_answer_is_repeated(tmp_path):
    clock, endpoint = Clock(), Endpoint("replay.insert", f"ipc://{tmp_path}/s")
    with closing(context().socket(zmq.ROUTER)) as server:
        server.bind(endpoint.address)
        with closing(Client(endpoint, hello(), clock)) as client:
            wait_until(lambda: server.poll(0), turn=client.receive)
            identity, *greeting = server.recv_multipart()
            clock.move(HELLO_RETRY_S)
            client.receive()
            assert not server.poll(20), "not before its time"
            clock.move(0.1)
            wait_until(lambda: server.poll(0), turn=client.receive)
            assert server.recv_multipart() == [identity, *greeting]
            server.send_multipart([identity, *encode(Welcome(instance=1))])
            wait_until(lambda: client.ready, turn=client.receive)


def test_newer_connection_of_one_name_replaces_the_older(connections):
    older = connections.ready()
    connections.ready(hello(epoch=2))
    assert [peer.hello.epoch for peer in connections.server.peers.values()] == [2]
    older.send(GetParams(newer_than=0))
    connections.until(lambda: connections.server.refused["hello_required"])
    assert connections.taken == []


def test_operators_with_equal_names_are_served_together(connections):
    for _ in range(2):
        connections.ready(hello("operator", "operator"))
    assert len(connections.server.peers) == 2


def test_reply_to_a_departed_peer_is_dropped_and_counted(connections):
    assert not connections.server.send(b"nobody", Ack())
    assert connections.server.refused == {"reply_dropped": 1}


def test_reply_to_a_peer_that_does_not_read_is_dropped_without_waiting(connections):
    client = connections.ready()
    (identity,) = connections.server.peers
    big = {"x": np.zeros(250_000)}
    sent = [connections.server.send(identity, Ack(), big) for _ in range(400)]
    assert sent[0] and not sent[-1] and connections.server.refused["reply_dropped"] > 100
    # It is served again once it reads.
    count = sum(sent)
    connections.until(lambda: len(connections.received[client]) >= count)
    client.send(GetParams(newer_than=0))
    connections.until(lambda: connections.taken)


def operator_request(connections: Connections, message: Message, timeout_s: float) -> Received:
    """Call `Client.request`; the server takes a turn each time that the client receives."""

    class Operator(Client):
        def receive(self) -> list[Received]:
            connections.turn()
            return super().receive()

    with closing(Operator(connections.endpoint, hello("op", "operator"))) as client:
        return client.request(message, timeout_s)


def test_request_gives_the_answer(connections):
    answer = operator_request(connections, Status(), 20.0)
    assert answer.message == StatusReply(status={"a": 1})


def test_request_that_is_refused_raises_with_the_code(connections):
    with pytest.raises(RefusedError) as error:
        operator_request(connections, Insert(seq=0), 20.0)
    assert error.value.code == "not_permitted"


def test_request_without_a_server_times_out(tmp_path):
    client = Client(Endpoint("replay.sample", f"ipc://{tmp_path}/none"), hello("op", "operator"))
    with closing(client), pytest.raises(PeerTimeoutError, match=r"replay\.sample: no answer"):
        client.request(Status(), 0.05)


def test_waker_ends_a_wait_and_is_cleared():
    waker = Waker()
    try:
        poller = Poller(waker)
        assert not poller.wait(0.0)
        waker.wake()
        waker.wake()
        assert poller.wait(10.0)
        waker.clear()
        waker.clear()
        assert not poller.wait(0.0)
    finally:
        waker.close()
