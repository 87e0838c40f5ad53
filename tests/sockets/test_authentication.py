"""Authentication by keys, users and roles, on real sockets."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import zmq

from apex.errors import EndpointError, RefusedError, UsageError
from apex.wire import curve_keys, sockets
from apex.wire.authentication import Anyone, KeyHolders, SameUser
from apex.wire.client import Client
from apex.wire.codec import encode
from apex.wire.endpoints import Endpoint, load, resolve
from apex.wire.messages import GetParams, Status, Welcome
from apex.wire.server import Request, Server
from apex.wire.sockets import Poller
from tests.support.builders import VECTOR_SCHEMA, hello
from tests.support.endpoints import tcp_endpoint
from tests.support.waiting import wait_until

PERMISSIONS = {"actor": (GetParams,), "operator": (Status,)}
NAMES = ("replay.insert", "replay.sample", "learner.params")


class GuardedServer:
    """A server at an endpoint, and clients that connect."""

    def __init__(self, endpoint: Endpoint, stack: ExitStack) -> None:
        self.endpoint = endpoint
        self.server = Server(
            endpoint, "run", VECTOR_SCHEMA.hash, PERMISSIONS,
            lambda peer: Welcome(instance=self.server.instance),
        )  # fmt: skip
        stack.callback(self.server.close)
        self._stack = stack
        self.taken: list[Request] = []

    def connect(self, folder: Path | None, role: str = "actor", endpoint: Endpoint | None = None):
        """A client with the keys of a folder."""
        where = endpoint or self.endpoint._replace(keys=folder)
        name = f"{role}_{time.monotonic_ns()}"
        client = Client(where, hello(name, role))
        self._stack.enter_context(closing(client))
        return client

    def until(self, client: Client, condition: Callable[[], object]) -> None:
        def turn() -> None:
            Poller(self.server, client).wait(0.02)
            self.taken.extend(self.server.receive())
            client.receive()

        wait_until(condition, turn=turn)

    def refused(self, client: Client) -> RefusedError:
        with pytest.raises(RefusedError) as error:
            self.until(client, lambda: client.ready)
        return error.value


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    curve_keys.make_folder(tmp_path / "keys")
    return tmp_path / "keys"


@pytest.mark.parametrize("name", NAMES)
def test_key_admits_its_own_role_only(stack, folder, name):
    guarded = GuardedServer(tcp_endpoint(folder, name), stack)
    client = guarded.connect(folder)
    guarded.until(client, lambda: client.ready)
    # The holder of the actor's key claims to be an operator.
    (folder / "operator.secret").write_bytes((folder / "actor.secret").read_bytes())
    with pytest.raises(EndpointError, match="expected the role 'operator', got 'actor'"):
        guarded.connect(folder, "operator")
    forged = (folder / "operator.secret").read_text().replace('role = "actor"', 'role = "operator"')
    (folder / "operator.secret").write_text(forged)
    error = guarded.refused(guarded.connect(folder, "operator"))
    assert error.code == "not_authorized"
    assert "the key 'actor' is for the role 'actor', not 'operator'" in str(error)


@pytest.mark.parametrize("name", NAMES)
def test_unauthorized_key_is_refused(stack, folder, tmp_path, name):
    guarded = GuardedServer(tcp_endpoint(folder, name), stack)
    curve_keys.make_folder(tmp_path / "strange")
    (tmp_path / "strange" / "server.public").write_bytes((folder / "server.public").read_bytes())
    error = guarded.refused(guarded.connect(tmp_path / "strange"))
    assert error.code == "not_authorized" and "authorized/" in str(error)
    assert sockets.gate().refused[name] > 0
    assert guarded.server.peers == {}


@pytest.mark.parametrize("name", NAMES)
def test_connection_without_a_key_or_with_a_wrong_server_key_is_refused(
    stack, folder, tmp_path, name
):
    guarded = GuardedServer(tcp_endpoint(folder, name), stack)
    plain = guarded.connect(None)
    curve_keys.make_folder(tmp_path / "strange")
    (tmp_path / "strange" / "actor.secret").write_bytes((folder / "actor.secret").read_bytes())
    mistaken = guarded.connect(tmp_path / "strange")
    good = guarded.connect(folder)
    guarded.until(good, lambda: good.ready)

    def turn() -> None:
        Poller(guarded.server, plain, mistaken).wait(0.02)
        list(guarded.server.receive())
        assert plain.receive() == mistaken.receive() == []

    with pytest.raises(AssertionError, match="not within"):
        wait_until(lambda: plain.ready or mistaken.ready, 0.5, turn=turn)
    assert [peer.hello.role for peer in guarded.server.peers.values()] == ["actor"]


def test_revoked_key_loses_its_connections_and_gets_no_new_one(stack, folder, tmp_path):
    curve_keys.add_key(folder, "far", "actor", tmp_path / "far")
    guarded = GuardedServer(tcp_endpoint(folder), stack)
    client, other = guarded.connect(tmp_path / "far"), guarded.connect(folder)
    guarded.until(client, lambda: client.ready)
    guarded.until(other, lambda: other.ready)
    curve_keys.revoke(folder, "far")
    with pytest.raises(RefusedError, match="no longer authorized"):
        guarded.until(client, lambda: False)
    assert guarded.refused(guarded.connect(tmp_path / "far")).code == "not_authorized"
    assert other.send(GetParams(newer_than=0))
    guarded.until(other, lambda: guarded.taken)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("transport", ["ipc", "tcp", "curve"])
def test_nobody_is_admitted_without_the_gate_thread(tmp_path, folder, name, transport):
    """In a separate process whose gate thread is stopped."""
    code = f"""
from pathlib import Path
from apex.wire.endpoints import Endpoint
from apex.wire import sockets
from apex.wire.client import Client
from apex.wire.server import Server
from apex.wire.messages import Welcome, GetParams
from tests.support.builders import VECTOR_SCHEMA, hello
from tests.support.endpoints import tcp_endpoint
from tests.support.waiting import wait_until
folder = Path({str(folder)!r})
endpoint = {{"ipc": Endpoint({name!r}, "ipc://{tmp_path}/s"), "tcp": tcp_endpoint(None, {name!r}),
            "curve": tcp_endpoint(folder, {name!r})}}[{transport!r}]
server = Server(endpoint, "run", VECTOR_SCHEMA.hash, {{"actor": (GetParams,)}},
                lambda peer: Welcome(instance=1))
def wait_for_admission(timeout_s):
    client = Client(endpoint, hello())
    def turn():
        sockets.Poller(server, client).wait(0.02)
        list(server.receive()); client.receive()
    wait_until(lambda: client.ready, timeout_s, turn=turn)
wait_for_admission(10.0)
sockets.gate().close()
try:
    wait_for_admission(2.0)
except AssertionError:
    pass
else:
    raise SystemExit("admitted without the gate thread")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr


def test_another_local_user_is_refused_at_a_reachable_socket(stack):
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    folder.chmod(0o755)
    GuardedServer(Endpoint("replay.insert", f"ipc://{folder}/s"), stack)
    (folder / "s").chmod(0o777)
    code = f"""
import os, socket, sys
os.setgid(65534); os.setuid(65534)
peer = socket.socket(socket.AF_UNIX)
peer.connect({str(folder / "s")!r})
peer.settimeout(10)
greeting = b"\\xff" + bytes(8) + b"\\x7f" + b"\\x03\\x00" + b"NULL".ljust(20, b"\\0") + bytes(32)
ready = b"\\x05READY\\x0bSocket-Type\\x00\\x00\\x00\\x06DEALER"
peer.sendall(greeting + b"\\x04" + bytes([len(ready)]) + ready)
answer = b""
while b"READY" not in answer and b"ERROR" not in answer:
    more = peer.recv(1000)
    if not more:
        break
    answer += more
sys.exit(0 if b"READY" in answer else 42)
"""
    as_self = code.replace("os.setgid(65534); os.setuid(65534)", "")
    assert subprocess.run([sys.executable, "-c", as_self], timeout=150).returncode == 0
    assert subprocess.run([sys.executable, "-c", code], timeout=150).returncode == 42
    assert sockets.gate().refused["replay.insert"] > 0


def test_policies_refuse_other_users_and_unknown_keys(folder, tmp_path):
    same = SameUser(1000)
    assert same.admit("localhost:1000:100:77", "NULL", []) is not None
    assert same.admit("localhost:0:0:77", "NULL", []) is not None
    assert same.admit("localhost:1001:100:77", "NULL", []) is None
    assert same.admit("localhost:1000:100:77", "PLAIN", [b"a", b"b"]) is None
    assert same.admit("", "NULL", []) is None and same.admit("a:b:c:d", "NULL", []) is None
    assert Anyone().admit("127.0.0.1", "PLAIN", [b"a", b"b"]) is None
    holders = KeyHolders(folder)
    assert holders.admit("127.0.0.1", "NULL", []) is None
    assert holders.admit("127.0.0.1", "PLAIN", [b"a", b"b"]) is None
    assert holders.admit("127.0.0.1", "CURVE", [bytes(32)]) is None
    assert KeyHolders(tmp_path / "gone").admit("127.0.0.1", "CURVE", [bytes(32)]) is None


def test_secret_files_are_private_and_checked(folder, tmp_path):
    assert {path.stat().st_mode & 0o777 for path in folder.glob("*.secret")} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / ".gitignore").read_text() == "*\n"
    (folder / "actor.secret").chmod(0o640)
    with pytest.raises(EndpointError, match=r"can be read by other users .*chmod 600"):
        curve_keys.client_keys(folder, "actor")
    (folder / "actor.secret").unlink()
    with pytest.raises(EndpointError, match="apex keys new"):
        curve_keys.client_keys(folder, "actor")
    (folder / "actor.secret").symlink_to(folder / "learner.secret")
    with pytest.raises(EndpointError, match="expected a regular file"):
        curve_keys.client_keys(folder, "actor")
    (folder / "server.secret").write_text("nonsense = 1\n")
    with pytest.raises(EndpointError, match=r"server\.secret"):
        sockets.bound_router(tcp_endpoint(folder))
    with pytest.raises(UsageError, match="already has keys"):
        curve_keys.make_folder(folder)
    for name in ("../evil", "", "a/b", "a" * 65, ".hidden"):
        with pytest.raises(UsageError, match="name"):
            curve_keys.add_key(folder, name, "actor", tmp_path / "out")
    with pytest.raises(UsageError, match="one of: actor, evaluator, inference, learner, operator"):
        curve_keys.revoke(folder, "nobody")


def test_keys_are_never_overwritten(folder, tmp_path):
    secret = (folder / "actor.secret").read_bytes()
    with pytest.raises(UsageError, match=r"actor\.secret already exists; choose another folder"):
        curve_keys.add_key(folder, "far", "actor", folder)
    assert (folder / "actor.secret").read_bytes() == secret
    assert not (folder / "authorized" / "far.public").exists()
    curve_keys.add_key(folder, "far", "actor", tmp_path / "far")
    with pytest.raises(UsageError, match="choose another folder"):
        curve_keys.add_key(folder, "farther", "actor", tmp_path / "far")


def test_make_folder_refuses_a_writable_folder_and_keeps_the_mode_of_others(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UsageError, match=r"other users can write to .* choose a new folder"):
        curve_keys.make_folder(tmp_path / "open")
    assert list((tmp_path / "open").iterdir()) == []
    (tmp_path / "readable").mkdir()
    (tmp_path / "readable").chmod(0o755)
    curve_keys.make_folder(tmp_path / "readable")
    assert (tmp_path / "readable").stat().st_mode & 0o777 == 0o755


def test_server_key_that_others_could_replace_is_not_trusted(folder):
    curve_keys.client_keys(folder, "actor")
    (folder / "server.public").chmod(0o666)
    with pytest.raises(EndpointError, match=r"server\.public.* is writable by other users"):
        curve_keys.client_keys(folder, "actor")


def test_greeting_with_a_future_epoch_is_refused(stack, folder):
    guarded = GuardedServer(tcp_endpoint(folder), stack)
    later = time.time_ns() + 2 * 3600 * 10**9
    client = Client(guarded.endpoint, hello("actor_000", epoch=later))
    stack.enter_context(closing(client))
    assert guarded.refused(client).code == "future_epoch"
    ahead = Client(guarded.endpoint, hello("actor_000", epoch=time.time_ns() + 60 * 10**9))
    stack.enter_context(closing(ahead))
    guarded.until(ahead, lambda: ahead.ready)


def test_ipv6_address_is_served(stack, folder):
    if not socket.has_ipv6 or not Path("/proc/net/if_inet6").read_text():
        pytest.skip("this machine has no IPv6")
    with socket.socket(socket.AF_INET6) as probe:
        probe.bind(("::1", 0))
        port = probe.getsockname()[1]
    guarded = GuardedServer(Endpoint("replay.insert", f"tcp://[::1]:{port}", folder), stack)
    client = guarded.connect(folder)
    guarded.until(client, lambda: client.ready)


def test_tcp_beyond_loopback_needs_keys(tmp_path, folder):
    file = tmp_path / "endpoints.toml"
    text = (
        '[replay]\ninsert = "tcp://10.1.2.3:7001"\nsample = "tcp://10.1.2.3:7002"\n'
        '[learner]\nparams = "tcp://10.1.2.3:7003"\n'
    )
    file.write_text(text)
    with pytest.raises(EndpointError, match="needs keys; create them with `apex keys new DIR`"):
        load(file)
    file.write_text("insecure_loopback = true\n" + text)
    with pytest.raises(EndpointError, match="needs keys"):
        load(file)
    file.write_text('keys = "keys"\n' + text)
    endpoint = load(file).of("replay.sample")
    assert endpoint == Endpoint("replay.sample", "tcp://10.1.2.3:7002", folder)
    file.write_text('keys = "keys"\n' + text.replace("10.1.2.3:7001", "192.0.2.1:*"))
    with pytest.raises(EndpointError, match="cannot listen on this address"):
        resolve(load(file), tmp_path)


def test_socket_in_a_folder_that_others_can_write_to_is_refused_by_both_sides(tmp_path):
    tmp_path.chmod(0o1777)
    endpoint = Endpoint("replay.insert", f"ipc://{tmp_path}/s")
    with pytest.raises(EndpointError, match="directory"):
        sockets.bound_router(endpoint)
    with pytest.raises(EndpointError, match="directory"):
        sockets.connected_dealer(endpoint, "actor")
    tmp_path.chmod(0o700)
    client, monitor = sockets.connected_dealer(endpoint, "actor")
    client.disable_monitor()
    monitor.close()
    client.close()


def test_admitted_keys_stay_admitted_while_the_folder_cannot_be_read(folder, monkeypatch):
    now = [0.0]
    holders = KeyHolders(folder, lambda: now[0])
    public = curve_keys.read_key(folder / "authorized" / "actor.public").public
    assert holders.refusal(public, "actor") is None

    def full(path: object) -> list[str]:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(curve_keys.os, "listdir", full)
    now[0] += 2.0
    assert holders.refusal(public, "actor") is None
    monkeypatch.undo()
    curve_keys.revoke(folder, "actor")
    assert holders.refusal(public, "actor") is None, "the folder is read at most once a second"
    now[0] += 2.0
    assert holders.refusal(public, "actor") == "this key is no longer authorized"


def test_unreadable_key_file_does_not_affect_other_keys(folder):
    now = [0.0]
    holders = KeyHolders(folder, lambda: now[0])
    public = curve_keys.read_key(folder / "authorized" / "actor.public").public
    learner = curve_keys.read_key(folder / "authorized" / "learner.public").public
    assert holders.refusal(public, "actor") is None
    (folder / "authorized" / "old.public").mkdir()
    (folder / "authorized" / "learner.public").unlink()
    (folder / "authorized" / "learner.public").mkdir()
    curve_keys.revoke(folder, "actor")
    now[0] += 2.0
    assert holders.refusal(public, "actor") == "this key is no longer authorized"
    assert holders.refusal(learner, "learner") is None, "an unreadable key keeps its permission"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keyed", [True, False])
def test_user_and_password_are_refused(stack, folder, name, keyed):
    guarded = GuardedServer(tcp_endpoint(folder if keyed else None, name), stack)
    plain = stack.enter_context(sockets.context().socket(zmq.DEALER))
    plain.setsockopt(zmq.PLAIN_USERNAME, b"actor")
    plain.setsockopt(zmq.PLAIN_PASSWORD, b"secret")
    plain.connect(guarded.endpoint.address)
    plain.send_multipart(encode(hello("plain")))
    good = guarded.connect(folder if keyed else None)
    guarded.until(good, lambda: good.ready)
    for _ in range(100):
        list(guarded.server.receive())
        assert plain.poll(5) == 0
    assert [peer.hello.name != "plain" for peer in guarded.server.peers.values()] == [True]


def test_key_folder_that_others_can_write_to_admits_nobody(folder, caplog):
    public = curve_keys.read_key(folder / "authorized" / "actor.public").public
    (folder / "authorized").chmod(0o777)
    assert KeyHolders(folder).refusal(public, "actor") == "this key is no longer authorized"
    assert "is writable by other users" in caplog.text
