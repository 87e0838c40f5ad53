"""Server and Client over an ipc endpoint: greetings, refusals, restarts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager

import numpy as np
import pytest
import zmq

from apex.data.schema import Array
from apex.errors import PeerTimeoutError, RefusedError
from apex.wire import client as wire_client
from apex.wire.client import Client
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
from tests.support.waiting import wait_until

PERMISSIONS = {"actor": (GetParams,), "learner": (GetParams,), "operator": (Status,)}


class Desk:
    """A server that answers GetParams with NotModified, and clients; all closed in the end."""

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
def desk(tmp_path) -> Iterator[Desk]:
    with ExitStack() as stack:
        yield Desk(f"ipc://{tmp_path}/s", stack)


@contextmanager
def stranger(address: str) -> Iterator[zmq.Socket]:
    """A bare DEALER that knows nothing of greetings."""
    socket = context().socket(zmq.DEALER)
    socket.connect(address)
    try:
        yield socket
    finally:
        socket.close(linger=0)


def answer_to(desk: Desk, socket: zmq.Socket, frames: list[bytes]) -> Message:
    socket.send_multipart(frames)
    wait_until(lambda: socket.poll(0), turn=desk.turn)
    return decode(socket.recv_multipart()).message


def test_greeted_client_sends_and_is_answered_with_its_arrays(desk):
    client = desk.ready()
    assert not desk.server.refused
    arrays: dict[str, Array] = {"x": np.arange(6.0).reshape(2, 3)}
    assert client.send(GetParams(newer_than=1), arrays)
    desk.until(lambda: len(desk.received[client]) == 2)
    assert isinstance(desk.messages(client)[0], Welcome)
    answer = desk.received[client][1]
    assert isinstance(answer.message, NotModified)
    np.testing.assert_array_equal(answer.arrays["x"], arrays["x"])
    assert desk.taken[0].peer.hello == hello()


def test_client_that_is_not_ready_sends_nothing(desk):
    client = desk.connect()
    assert not client.ready and not client.send(GetParams(newer_than=1))


def test_client_may_start_before_its_server(tmp_path):
    with ExitStack() as stack:
        early = Client(Endpoint("replay.insert", f"ipc://{tmp_path}/s"), hello())
        stack.enter_context(closing(early))
        assert early.receive() == []
        desk = Desk(f"ipc://{tmp_path}/s", stack)
        desk.clients.append(early)
        desk.received[early] = []
        desk.until(lambda: early.ready)


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
def test_stranger_is_refused_with_a_code(desk, changes, code):
    client = desk.connect(hello(**changes))
    with pytest.raises(RefusedError) as error:
        desk.until(lambda: client.ready)
    assert error.value.code == code and str(error.value).startswith("replay.insert: ")
    assert desk.server.refused == {code: 1} and desk.server.peers == {}
    desk.clients.remove(client)
    assert desk.ready().ready


def test_operator_needs_no_schema_but_the_right_run(desk):
    assert desk.ready(hello("operator", "operator", schema_hash="")).ready
    other = desk.connect(hello("operator", "operator", run_id="other"))
    with pytest.raises(RefusedError, match="expected run run, got other"):
        desk.until(lambda: other.ready)


def test_message_that_a_role_may_not_send_is_refused(desk):
    client = desk.ready()
    client.send(Status())
    with pytest.raises(RefusedError) as error:
        desk.until(lambda: desk.taken)
    assert error.value.code == "not_permitted" and desk.taken == []


def test_message_without_a_greeting_is_refused(desk):
    with stranger(desk.address) as socket:
        answer = answer_to(desk, socket, [bytes(f) for f in encode(GetParams(newer_than=0))])
    assert isinstance(answer, Error) and answer.code == "hello_required"
    assert desk.taken == []


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
def test_malformed_message_is_answered_counted_and_survived(desk, frames, code):
    with stranger(desk.address) as socket:
        answer = answer_to(desk, socket, frames)
    assert isinstance(answer, Error) and answer.code == code
    assert desk.server.refused[code] == 1
    assert desk.ready().ready


def test_message_that_broke_a_decoder_once_is_survived(desk):
    """An empty buffer with a side that no array can have."""
    import msgspec

    header = msgspec.msgpack.encode(
        {
            "type": "insert",
            "protocol": PROTOCOL_VERSION,
            "seq": 0,
            "buffers": [["x", "uint8", [0, 2**63]]],
        }
    )
    with stranger(desk.address) as socket:
        answer = answer_to(desk, socket, [header, b""])
    assert isinstance(answer, Error) and answer.code == "malformed"


def test_client_greets_a_restarted_server_again(desk):
    client = desk.ready()
    desk.restart()
    desk.until(lambda: len(desk.server.peers) == 1 and client.ready)
    instances = [m.instance for m in desk.messages(client) if isinstance(m, Welcome)]
    assert len(instances) == 2 and instances[0] != instances[1]
    assert client.send(GetParams(newer_than=0))
    desk.until(lambda: desk.taken)


def test_client_that_the_server_forgot_greets_again(desk):
    client = desk.ready()
    desk.now += 60
    desk.turn()
    assert len(desk.server.peers) == 1
    desk.now += 61
    desk.turn()
    assert desk.server.peers == {}
    client.send(GetParams(newer_than=0))
    desk.until(lambda: len(desk.server.peers) == 1 and client.ready)
    assert desk.taken == [] and desk.server.refused == {"hello_required": 1}
    client.send(GetParams(newer_than=0))
    desk.until(lambda: desk.taken)


def test_lost_greeting_is_repeated(desk, monkeypatch):
    monkeypatch.setattr(wire_client, "HELLO_RETRY_S", 0.0)
    dropped = []
    monkeypatch.setattr(desk.server, "_greet", lambda *greeting: dropped.append(greeting))
    client = desk.connect()
    desk.until(lambda: dropped)
    monkeypatch.undo()
    monkeypatch.setattr(wire_client, "HELLO_RETRY_S", 0.0)
    desk.until(lambda: client.ready)


def test_newer_connection_of_one_name_replaces_the_older(desk):
    older = desk.ready()
    desk.ready(hello(epoch=2))
    assert [peer.hello.epoch for peer in desk.server.peers.values()] == [2]
    older.send(GetParams(newer_than=0))
    desk.until(lambda: desk.server.refused["hello_required"])
    assert desk.taken == []


def test_operators_of_one_name_live_side_by_side(desk):
    for _ in range(2):
        desk.ready(hello("operator", "operator"))
    assert len(desk.server.peers) == 2


def test_reply_to_one_who_is_gone_is_dropped_and_counted(desk):
    assert not desk.server.send(b"nobody", Ack())
    assert desk.server.refused == {"reply_dropped": 1}


def test_reply_to_one_who_does_not_read_is_dropped_and_never_waits(desk):
    client = desk.ready()
    (identity,) = desk.server.peers
    big = {"x": np.zeros(250_000)}
    sent = [desk.server.send(identity, Ack(), big) for _ in range(400)]
    assert sent[0] and not sent[-1] and desk.server.refused["reply_dropped"] > 100
    # It is served again as soon as it reads.
    count = sum(sent)
    desk.until(lambda: len(desk.received[client]) >= count)
    client.send(GetParams(newer_than=0))
    desk.until(lambda: desk.taken)


def operator_request(desk: Desk, monkeypatch, message: Message, timeout_s: float) -> Received:
    """Client.request, with the server's turns taken where the client would wait."""
    client = Client(desk.endpoint, hello("op", "operator"))
    receive = client.receive

    def receive_with_turn() -> list[Received]:
        desk.turn()
        return receive()

    monkeypatch.setattr(client, "receive", receive_with_turn)
    with closing(client):
        return client.request(message, timeout_s)


def test_request_gives_the_answer(desk, monkeypatch):
    answer = operator_request(desk, monkeypatch, Status(), 20.0)
    assert answer.message == StatusReply(status={"a": 1})


def test_request_that_is_refused_raises_with_the_code(desk, monkeypatch):
    with pytest.raises(RefusedError) as error:
        operator_request(desk, monkeypatch, Insert(seq=0), 20.0)
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
