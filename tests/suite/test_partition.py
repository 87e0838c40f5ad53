"""Network partitions between a producer and the replay server.

Two network namespaces are the hosts, connected by a pair of virtual links, with CURVE keys. A
ledger has the acknowledged inserts.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from apex.launch.prepare import prepare_run, preset_config
from apex.runs.directory import RunDirectory
from apex.wire import curve_keys
from tests.support.paths import ROOT
from tests.support.waiting import wait_until
from tests.tools.ledger import ITEMS, audit

CLIENT = """
import json, sys, threading
from pathlib import Path
from apex.runs.directory import RunDirectory
from tests.tools.ledger import Producer
run = RunDirectory(Path(sys.argv[1]))
producer = Producer(run, 0, lives_s=1000.0, pause_s=0.005)
producer.start()
for line in sys.stdin:
    if line == "stop\\n":
        producer.stop()
        producer.join()
    print(json.dumps(producer.acknowledged()), flush=True)
"""


class Hosts:
    """Two hosts, `server` and `client`, and the link between them."""

    def __init__(self) -> None:
        self.names = {side: f"apex{os.getpid()}{side[0]}" for side in ("server", "client")}
        self.links = {side: f"apx{side[0]}{os.getpid()}" for side in self.names}
        self.address = "10.177.0.1"

    def run(self, *words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, timeout=10)

    def on(self, side: str, *words: str) -> list[str]:
        return ["ip", "netns", "exec", self.names[side], *words]

    def open(self) -> None:
        for name in self.names.values():
            self.run("netns", "add", name)
        server, client = self.links["server"], self.links["client"]
        self.run("link", "add", server, "netns", self.names["server"], "type", "veth",
                 "peer", "name", client, "netns", self.names["client"])  # fmt: skip
        for side, address in (("server", self.address), ("client", "10.177.0.2")):
            name, link = self.names[side], self.links[side]
            self.run("-n", name, "address", "add", f"{address}/24", "dev", link)
            self.run("-n", name, "link", "set", link, "up")
            self.run("-n", name, "link", "set", "lo", "up")

    def close(self) -> None:
        for name in self.names.values():
            subprocess.run(["ip", "netns", "del", name], capture_output=True, timeout=10)

    def cut(self) -> Callable[[], None]:
        """Drop all packets. Returns a function that restores the link."""
        name, link = self.names["client"], self.links["client"]
        self.run("-n", name, "link", "set", link, "down")
        return lambda: self.run("-n", name, "link", "set", link, "up")

    def degrade(self) -> None:
        """Lose 5 % of the packets and delay each by 100 ms, in both directions."""
        for side, name in self.names.items():
            self.run("netns", "exec", name, "tc", "qdisc", "add", "dev", self.links[side], "root",
                     "netem", "loss", "5%", "delay", "100ms")  # fmt: skip

    def deafen(self, side: str) -> Callable[[], None]:
        """Drop all packets to a side. Returns a function that restores the link."""
        other = "client" if side == "server" else "server"
        to = self.address if side == "server" else "10.177.0.2"
        where = ("-n", self.names[other], "neigh")
        what = (to, "dev", self.links[other])
        self.run(*where, "replace", *what, "lladdr", "02:00:00:00:00:99", "nud", "permanent")
        return lambda: self.run(*where, "del", *what)


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.getuid() != 0 or shutil.which("ip") is None:
        pytest.skip("needs root and the command ip (iproute2) for network namespaces")
    hosts = Hosts()
    try:
        hosts.open()
    except subprocess.CalledProcessError as error:
        hosts.close()
        pytest.skip(f"network namespaces are not permitted here: {error.stderr!r}")
    yield hosts
    hosts.close()


@pytest.fixture
def suite_run(hosts: Hosts, tmp_path: Path) -> RunDirectory:
    curve_keys.make_folder(tmp_path / "keys")
    at = f'"tcp://{hosts.address}:'
    (tmp_path / "endpoints.toml").write_text(
        f'keys = "keys"\n[replay]\ninsert = {at}7001"\nsample = {at}7002"\n'
        f'[learner]\nparams = {at}7003"\n'
    )
    settings = ["replay.samples_per_insert=0", "replay.capacity=500000"]
    config = preset_config("cartpole", settings)
    return prepare_run(tmp_path / "run", config, tmp_path / "endpoints.toml")


class RemoteProducer:
    """The producer, in a process on the other host."""

    def __init__(self, hosts: Hosts, run: RunDirectory) -> None:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self._process = subprocess.Popen(
            hosts.on("client", sys.executable, "-c", CLIENT, str(run.path)),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip

    def acknowledged(self, word: str = "how far\n") -> dict[int, dict[int, bool]]:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(word)
        self._process.stdin.flush()
        found: dict[str, Any] = json.loads(self._process.stdout.readline())
        return {int(e): {int(s): d for s, d in seqs.items()} for e, seqs in found.items()}

    def count(self) -> int:
        return sum(len(seqs) for seqs in self.acknowledged().values())

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def ledger_across(hosts: Hosts, run: RunDirectory, scratch: Path) -> Iterator[RemoteProducer]:
    """Run a producer that inserts across the network, then audit its ledger."""
    replay = subprocess.Popen(
        hosts.on("server", sys.executable, str(ROOT / "bin" / "replay"), "--run", str(run.path))
    )
    far = RemoteProducer(hosts, run)
    ledger: dict[int, dict[int, bool]] = {}
    try:
        wait_until(lambda: far.count() > 100, 60.0, "inserts across the network")
        yield far
        ledger.update(far.acknowledged("stop\n"))
    finally:
        far.kill()
        replay.terminate()
        replay.wait(timeout=20)
    stub: Any = type("Ledger", (), {"acknowledged": lambda self: ledger})()
    result = audit(run, [stub], scratch)
    assert result.lost == result.duplicated == [] and result.altered == result.volatile == 0
    assert result.acknowledged == ITEMS * sum(len(seqs) for seqs in ledger.values()) > 2000
    assert list(ledger) == [1], "one producer, which never started again"


@pytest.mark.parametrize(
    ("breaks", "seconds"),
    [
        (Hosts.cut, 13.0),
        (lambda hosts: hosts.deafen("server"), 13.0),
        (lambda hosts: hosts.deafen("client"), 13.0),
    ],
    ids=["cut", "inserts are lost", "acknowledgements are lost"],
)
def test_no_item_is_lost_or_duplicated_after_a_partition(
    hosts: Hosts,
    suite_run: RunDirectory,
    breaks: Callable[[Hosts], Callable[[], None]],
    seconds: float,
    tmp_path: Path,
) -> None:
    """The partition exceeds the heartbeat timeout of ten seconds, so that clients reconnect."""
    with ledger_across(hosts, suite_run, tmp_path / "audited") as far:
        restore = breaks(hosts)
        time.sleep(0.5)
        before = far.count()
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            assert far.count() - before <= 4, "a producer has at most four on the way"
            time.sleep(1.0)
        restore()
        wait_until(lambda: far.count() > before + 100, 60.0, "inserts go on")


def test_no_item_is_lost_or_duplicated_on_a_lossy_network(
    hosts: Hosts, suite_run: RunDirectory, tmp_path: Path
) -> None:
    with ledger_across(hosts, suite_run, tmp_path / "audited") as far:
        try:
            hosts.degrade()
        except (subprocess.CalledProcessError, FileNotFoundError) as error:
            pytest.skip(f"this kernel has no netem to lose and delay packets: {error}")
        before = far.count()
        wait_until(lambda: far.count() > before + 300, 60.0, "inserts go on, slowly")
