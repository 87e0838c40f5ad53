"""Endpoints: valid addresses, socket directories, addresses in use."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from pathlib import Path

import pytest
import zmq

from apex.errors import EndpointError
from apex.host import paths
from apex.host.files import FileLock
from apex.wire import endpoints
from apex.wire.endpoints import Endpoint, Endpoints, dump, load, resolve
from apex.wire.server import Server
from apex.wire.sockets import bound_router, context

GOOD = {
    "replay.insert": "ipc:///run/a",
    "replay.sample": "ipc:///run/b",
    "learner.params": "ipc:///run/c",
}


def write(path: Path, addresses: dict[str, str], *, insecure: bool = False) -> Path:
    lines = [f"insecure_loopback = {str(insecure).lower()}"]
    for name, address in addresses.items():
        lines.append(f"{name} = '{address}'")
    file = path / "endpoints.toml"
    file.write_text("\n".join(lines))
    return file


def refusal(path: Path, *, insecure: bool = False, **changes: str) -> str:
    addresses = {**GOOD, **{k.replace("_", "."): v for k, v in changes.items()}}
    with pytest.raises(EndpointError) as error:
        load(write(path, addresses, insecure=insecure))
    return str(error.value)


def loaded(path: Path, *, insecure: bool = False, **changes: str) -> Endpoints:
    addresses = {**GOOD, **{k.replace("_", "."): v for k, v in changes.items()}}
    return load(write(path, addresses, insecure=insecure))


@pytest.fixture
def runtime(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("r")  # short: a socket's path may have 107 bytes
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    return folder


def test_valid_file_gives_every_address(tmp_path):
    assert loaded(tmp_path).addresses() == GOOD


def test_shipped_file_is_valid_and_private(runtime, tmp_path):
    resolved = resolve(load(endpoints.default_file()), tmp_path)
    paths = [Path(address.removeprefix("ipc://")) for address in resolved.addresses().values()]
    assert len(set(paths)) == 4 and all(runtime in path.parents for path in paths)
    assert stat.S_IMODE(paths[0].parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(paths[0].parent.parent.stat().st_mode) == 0o700


def test_resolved_endpoints_read_back_equal(runtime, tmp_path):
    resolved = resolve(load(endpoints.default_file()), tmp_path)
    file = tmp_path / "resolved.toml"
    file.write_text(dump(resolved))
    assert load(file) == resolved


def test_two_runs_get_two_directories(runtime, tmp_path):
    one, other = (resolve(load(endpoints.default_file()), tmp_path / name) for name in "ab")
    assert not set(one.addresses().values()) & set(other.addresses().values())


def test_missing_file_is_named(tmp_path):
    with pytest.raises(EndpointError, match=r"missing\.toml: no such file.*deploy/endpoints"):
        load(tmp_path / "missing.toml")


@pytest.mark.parametrize("name", GOOD)
def test_missing_key_is_named(tmp_path, name):
    file = write(tmp_path, {k: v for k, v in GOOD.items() if k != name})
    with pytest.raises(EndpointError) as error:
        load(file)
    assert name.partition(".")[2] in str(error.value) and str(file) in str(error.value)


def test_unknown_key_and_wrong_type_are_named(tmp_path):
    file = write(tmp_path, {**GOOD, "replay.extra": "ipc:///x"})
    with pytest.raises(EndpointError, match="extra"):
        load(file)
    file.write_text("replay = 3")
    with pytest.raises(EndpointError, match=r"endpoints\.toml"):
        load(file)


@pytest.mark.parametrize(
    "address", ["udp://1.2.3.4:5", "/run/a", "inproc://a", "", "http://127.0.0.1:80", "ipc:/run/a"]
)
def test_bad_scheme_is_refused_by_name(tmp_path, address):
    message = refusal(tmp_path, replay_sample=address)
    assert "replay.sample" in message and "ipc://PATH or tcp://ADDRESS:PORT" in message


def test_relative_ipc_path_is_refused(tmp_path):
    assert "absolute" in refusal(tmp_path, replay_insert="ipc://run/a")


def test_ipc_path_of_107_bytes_is_taken_and_108_refused(tmp_path):
    fits, too_long = "/" + "a" * 106, "/" + "a" * 107
    assert loaded(tmp_path, replay_insert="ipc://" + fits)
    assert "got 108" in refusal(tmp_path, replay_insert="ipc://" + too_long)
    umlauts = "/" + "ü" * 54
    assert "got 109" in refusal(tmp_path, replay_insert="ipc://" + umlauts)


def test_ipc_path_that_got_too_long_is_refused_when_resolved(tmp_path, monkeypatch):
    folder = tmp_path / ("x" * 90)
    folder.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    with pytest.raises(EndpointError, match="107"):
        resolve(load(endpoints.default_file()), tmp_path)


def test_tcp_beyond_loopback_is_refused_even_when_insecure(tmp_path):
    for address in ("tcp://10.0.0.1:5000", "tcp://0.0.0.0:5000", "tcp://[::]:5000"):
        assert "needs keys" in refusal(tmp_path, insecure=True, learner_params=address)


def test_tcp_on_loopback_needs_insecure_loopback(tmp_path):
    for address in ("tcp://127.0.0.1:5000", "tcp://[::1]:5000"):
        assert "insecure_loopback" in refusal(tmp_path, learner_params=address)
        assert loaded(tmp_path, insecure=True, learner_params=address).learner.params == address


@pytest.mark.parametrize("port", ["0", "65536", "-1", "x", "", "5000 "])
def test_bad_port_is_refused(tmp_path, port):
    assert "port" in refusal(tmp_path, insecure=True, learner_params=f"tcp://127.0.0.1:{port}")


@pytest.mark.parametrize("host", ["localhost", "*", "eth0", ""])
def test_host_that_is_not_numeric_is_refused(tmp_path, host):
    assert "numeric" in refusal(tmp_path, insecure=True, learner_params=f"tcp://{host}:5000")


def test_star_port_becomes_a_free_one(tmp_path):
    star = "tcp://127.0.0.1:*"
    given = loaded(
        tmp_path, insecure=True, replay_insert=star, replay_sample=star, learner_params=star
    )
    resolved = resolve(given, tmp_path).addresses().values()
    ports = [int(address.rpartition(":")[2]) for address in resolved]
    assert all(1024 <= port < 65536 for port in ports)
    bind(f"tcp://127.0.0.1:{ports[0]}").close()


def test_same_address_twice_is_refused(tmp_path):
    assert "same address" in refusal(tmp_path, replay_sample="ipc:///run/a")


def test_socket_directory_with_open_permissions_is_made_private(runtime, tmp_path):
    folder = paths.socket_directory(tmp_path)
    folder.chmod(0o777)
    folder.parent.chmod(0o755)
    assert paths.socket_directory(tmp_path) == folder
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another's directory")
def test_socket_directory_of_another_user_is_refused(runtime, tmp_path):
    folder = runtime / f"apex-{os.getuid()}"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(EndpointError, match="not a directory that you own"):
        paths.socket_directory(tmp_path)


def test_link_in_place_of_the_socket_directory_is_refused(runtime, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (runtime / f"apex-{os.getuid()}").symlink_to(elsewhere)
    with pytest.raises(EndpointError, match="not a directory that you own"):
        paths.socket_directory(tmp_path)


def test_file_in_place_of_the_socket_directory_is_refused(runtime, tmp_path):
    (runtime / f"apex-{os.getuid()}").write_text("")
    with pytest.raises(EndpointError, match="apex-"):
        paths.socket_directory(tmp_path)


def test_temporary_directory_is_used_when_the_runtime_directory_is_missing(tmp_path, monkeypatch):
    """As after `su`, where XDG_RUNTIME_DIR names a directory that does not exist."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "gone"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert paths.socket_directory(tmp_path).parent == tmp_path / f"apex-{os.getuid()}"


def bind(address: str) -> Server:
    return Server(Endpoint("replay.insert", address), "run", "hash", {}, lambda peer: None)


def test_port_in_use_is_an_error_with_a_remedy():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"tcp://127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(EndpointError, match=r"replay\.insert: .* in use .*another port"):
            bound_router(Endpoint("replay.insert", address))


def test_second_server_at_an_ipc_path_is_refused_and_the_first_keeps_working(tmp_path):
    address = f"ipc://{tmp_path}/s"
    first = bind(address)
    try:
        with pytest.raises(EndpointError, match="another process serves"):
            bind(address)
        assert stat.S_ISSOCK((tmp_path / "s").stat().st_mode)
    finally:
        first.close()
    assert not (tmp_path / "s").exists()
    bind(address).close()


def test_stale_socket_of_an_ended_process_is_replaced(tmp_path):
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(tmp_path / "s"))
    assert (tmp_path / "s").exists()
    server = bind(f"ipc://{tmp_path}/s")
    try:
        with socket.socket(socket.AF_UNIX) as visitor:
            visitor.connect(str(tmp_path / "s"))
    finally:
        server.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_non_socket_at_an_ipc_path_is_kept(tmp_path, kind):
    path = tmp_path / "s"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "target")
    with pytest.raises(EndpointError, match=r"is not a socket; remove it"):
        bind(f"ipc://{path}")
    assert path.is_symlink() or path.exists()
    assert kind != "file" or path.read_text() == "precious"
    lock = FileLock(tmp_path / "s.lock")
    assert lock.acquire(), "a refused bind gives its lock back"
    lock.release()


def test_socket_folder_that_cannot_be_created_is_an_endpoint_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EndpointError, match="cannot use"):
        bind(f"ipc://{tmp_path}/file/s")


@pytest.mark.parametrize(("name", "most"), [("learner.params", 2**20), ("replay.sample", 2**21)])
def test_frame_above_an_endpoints_limit_ends_the_connection(tmp_path, name, most):
    router, _, lock = bound_router(Endpoint(name, f"ipc://{tmp_path}/s"))
    try:
        with context().socket(zmq.DEALER) as dealer:
            dealer.connect(f"ipc://{tmp_path}/s")
            dealer.send(bytes(most))
            assert router.poll(10_000) and len(router.recv_multipart()[1]) == most
            dealer.send(bytes(most + 1))
            assert router.poll(500) == 0
    finally:
        router.close(linger=0)
        lock.release()


def test_router_is_mandatory_and_has_a_bounded_linger(tmp_path):
    router, _, lock = bound_router(Endpoint("replay.insert", f"ipc://{tmp_path}/s"))
    try:
        assert 0 <= router.getsockopt(zmq.LINGER) <= 5000
        assert 0 < router.getsockopt(zmq.SNDHWM) <= 1000 and router.getsockopt(zmq.RCVHWM) > 0
        assert router.getsockopt(zmq.MAXMSGSIZE) == 2**28
        with pytest.raises(zmq.ZMQError, match="Host unreachable"):
            router.send_multipart([b"nobody", b"x"], zmq.NOBLOCK)
    finally:
        router.close(linger=0)
        lock.release()
