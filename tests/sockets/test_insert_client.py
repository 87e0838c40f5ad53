"""The replay server and its clients in one process: exactly-once inserts, credits, priorities."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from apex.config.loading import merge, parse
from apex.daemons.learner.prefetcher import Prefetcher
from apex.daemons.replay import insert_endpoint, sample_endpoint
from apex.daemons.replay.client import InsertClient, SampleClient
from apex.daemons.replay.daemon import ReplayServer
from apex.data.chunks import Items, Samples
from apex.data.schema import Arrays
from apex.errors import CorruptItemsError, RefusedError
from apex.runs.directory import RunFacts
from apex.wire.client import Client
from apex.wire.endpoints import Endpoint, Endpoints, LearnerEndpoints, ReplayEndpoints
from apex.wire.messages import Error, Insert, InsertAck, Sample, Status, UpdatePriorities
from tests.support.builders import VECTOR_SCHEMA, env_spec, hello, vector_chunk
from tests.support.waiting import wait_until


class InProcessReplay:
    """A replay server and clients that run in turns and are closed with the test."""

    def __init__(self, folder, stack: ExitStack) -> None:
        self.endpoints = Endpoints(
            ReplayEndpoints(f"ipc://{folder}/i", f"ipc://{folder}/s"),
            LearnerEndpoints(f"ipc://{folder}/p"),
        )
        self.folder = folder / "replay"
        self.now = 0.0
        self.first_id = 0
        self.batches: list[Samples] = []
        self._clients: list[object] = []
        self._stack = stack
        stack.callback(self._close_clients)
        self.settings: dict[str, object] = {}

    def start(self, **settings: object) -> ReplayServer:
        self.settings = settings
        raw = {
            "env": {"id": "X-v0"},
            "algorithm": {"name": "apex_dqn"},
            "actor": {"chunk_length": 2},
            "learner": {"batch_size": 4, "prefetch": 1},
            "replay": {
                "capacity": 1000,
                "min_size": 1,
                "priority_exponent": 1.0,
                "durability": "off",
            },
        }
        config = parse(merge(raw, {"replay": settings}))
        facts = RunFacts("run", env_spec((3,), "float32"), VECTOR_SCHEMA)
        self.server = ReplayServer(
            config, self.endpoints, facts, self.folder, clock_ns=lambda: self.first_id
        )
        self._stack.callback(self.server.close)
        return self.server

    def callback(self, close: Callable[[], None]) -> None:
        self._stack.callback(close)

    def restart(self) -> None:
        self.server.close()
        self.first_id += 1_000
        self.start(**self.settings)

    def producer(self, **greeting: object) -> InsertClient:
        client = InsertClient(
            self.endpoints.of("replay.insert"), hello(**greeting), lambda: self.now
        )
        return self._add(client)

    def learner(self, batch_size: int = 4, **greeting: object) -> SampleClient:
        greeting = {"name": "learner", "role": "learner", **greeting}
        address = self.endpoints.of("replay.sample")
        return self._add(SampleClient(address, hello(**greeting), batch_size, lambda: self.now))

    def prefetcher(
        self,
        *,
        batch_size: int = 4,
        depth: int = 1,
        client: type[SampleClient] = SampleClient,
        collate: Callable[[Items], Any] = lambda items: items.columns,
        transfer: Callable[[Any], Any] = lambda batch: batch,
    ) -> Prefetcher:
        """A prefetcher with its own connection; it is closed with the test."""
        greeting = hello(name="learner", role="learner")
        one = Prefetcher(
            lambda: client(self.endpoints.of("replay.sample"), greeting, batch_size),
            VECTOR_SCHEMA, collate, depth, 1, transfer,
        )  # fmt: skip
        self.callback(one.close)
        return one

    def bare(self, endpoint: Endpoint, **greeting: object) -> tuple[Client, list]:
        """A plain client that ignores credits, and the list of all that it receives."""
        client, received = Client(endpoint, hello(**greeting)), []
        client.poll = lambda: received.extend(client.receive())
        self._add(client)
        self.until(lambda: client.ready)
        return client, received

    def _close_clients(self) -> None:
        for client in self._clients:
            client.close()

    def _add(self, client):
        self._clients.append(client)
        return client

    def turn(self) -> None:
        self.server.turn(0.005)
        for client in self._clients:
            self.batches += client.poll() or []

    def until(self, condition) -> None:
        wait_until(condition, turn=self.turn)

    def leave(self, client) -> None:
        """Remove a client, as if it had died."""
        self._clients.remove(client)
        client.close()

    def actions(self) -> list[int]:
        """The actions in the table by item id, without sampling."""
        table = self.server.table
        return table.contents(table.state().item_ids)[0]["action"].tolist()


@pytest.fixture
def replay(tmp_path) -> Iterator[InProcessReplay]:
    with ExitStack() as stack:
        yield InProcessReplay(tmp_path, stack)


def insert(replay: InProcessReplay, client: InsertClient, *actions: int) -> None:
    replay.until(lambda: client.has_credit)
    client.insert(vector_chunk(actions))


def test_inserted_chunks_are_in_the_table_in_order_and_acknowledged(replay):
    replay.start()
    client = replay.producer()
    for first in range(0, 40, 2):
        insert(replay, client, first, first + 1)
    replay.until(lambda: client.unacknowledged == 0)
    assert replay.actions() == list(range(40)) and client.inserted_items == 40
    assert replay.server.status().duplicate_inserts == 0


def test_chunk_is_in_the_table_before_its_acknowledgement_leaves(replay):
    replay.start()
    client = replay.producer()
    insert(replay, client, 1, 2)
    sizes = []
    send = replay.server.inserts.server.send

    def watch(identity, message, arrays=None):
        if isinstance(message, InsertAck):
            sizes.append(len(replay.server.table))
        return send(identity, message, arrays)

    replay.server.inserts.server.send = watch
    replay.until(lambda: client.unacknowledged == 0)
    assert sizes == [2]


def lose_acknowledgements(replay: InProcessReplay, monkeypatch) -> None:
    send = replay.server.inserts.server.send
    monkeypatch.setattr(
        replay.server.inserts.server,
        "send",
        lambda identity, message, arrays=None: (
            True if isinstance(message, InsertAck) else send(identity, message, arrays)
        ),
    )


def test_lost_acknowledgement_leads_to_a_resend_and_no_second_insert(replay, monkeypatch):
    replay.start()
    client = replay.producer()
    replay.until(lambda: client.has_credit)
    lose_acknowledgements(replay, monkeypatch)
    client.insert(vector_chunk([1, 2]))
    client.insert(vector_chunk([3]))
    replay.until(lambda: len(replay.server.table) == 3)
    monkeypatch.undo()
    assert client.unacknowledged == 2
    replay.now += 11.0
    replay.until(lambda: client.unacknowledged == 0)
    replay.until(lambda: replay.server.status().duplicate_inserts == 2)
    assert replay.actions() == [1, 2, 3]


def test_lost_acknowledgement_is_recovered_by_the_next_welcome(replay, monkeypatch):
    replay.start()
    client = replay.producer()
    replay.until(lambda: client.has_credit)
    lose_acknowledgements(replay, monkeypatch)
    client.insert(vector_chunk([1, 2]))
    replay.until(lambda: len(replay.server.table) == 2)
    monkeypatch.undo()
    replay.server.inserts.server.peers.clear()
    client.insert(vector_chunk([3]))  # must greet again; the welcome says that 1, 2 are inserted
    replay.until(lambda: client.unacknowledged == 0)
    assert replay.actions() == [1, 2, 3]


def test_only_unacknowledged_chunks_are_resent_to_a_restarted_server(replay, monkeypatch):
    replay.start()
    client = replay.producer()
    insert(replay, client, 1, 2)
    replay.until(lambda: client.unacknowledged == 0)
    lose_acknowledgements(replay, monkeypatch)
    client.insert(vector_chunk([3]))
    replay.until(lambda: len(replay.server.table) == 3)
    monkeypatch.undo()
    replay.restart()
    client.insert(vector_chunk([4, 5]))  # into the broken connection
    replay.until(lambda: client.unacknowledged == 0 and client.client.ready)
    assert replay.actions() == [3, 4, 5]


def test_every_chunk_is_inserted_once_despite_random_losses(replay, monkeypatch):
    replay.start()
    client, rng = replay.producer(), np.random.default_rng(0)
    send, lost = replay.server.inserts.server.send, []

    def unreliable(identity, message, arrays=None):
        if isinstance(message, InsertAck) and rng.random() < 0.3:
            lost.append(message.seq)
            return False
        return send(identity, message, arrays)

    monkeypatch.setattr(replay.server.inserts.server, "send", unreliable)

    def turn() -> None:
        replay.turn()
        replay.now += 3.0
        if rng.random() < 0.1:
            replay.server.inserts.server.peers.clear()

    sent = 0
    while sent < 80 or not replay.server.status().duplicate_inserts:
        wait_until(lambda: client.has_credit, turn=turn)
        client.insert(vector_chunk([sent]))
        sent += 1
        assert sent < 1000, "no insert was sent twice, so this test covers nothing"
    wait_until(lambda: client.unacknowledged == 0, turn=turn)
    assert replay.actions() == list(range(sent))
    assert len(lost) > 10


def test_producer_without_credit_waits_and_queues_stay_bounded(replay):
    # Tolerance 6 = 4 x 1 + 1 x 2: after min_size, six more items without sampling.
    replay.start(samples_per_insert=1.0)
    client = replay.producer()
    inserted = 0
    while inserted < 60:
        replay.turn()
        if not client.has_credit and client.client.ready:
            break
        if client.has_credit:
            client.insert(vector_chunk([inserted, inserted + 1]))
            inserted += 2
    for _ in range(20):
        replay.turn()
        if client.has_credit:
            client.insert(vector_chunk([inserted, inserted + 1]))
            inserted += 2
    assert replay.server.table.limiter.inserted <= 7 and client.unacknowledged == 4
    assert replay.server.status().waiting_inserts == 4 and not client.has_credit
    # Resends of waiting inserts are neither inserted nor queued twice.
    replay.now += 11.0
    replay.until(lambda: replay.server.status().duplicate_inserts == 4)
    assert replay.server.status().waiting_inserts == 4
    learner = replay.learner()

    def drain() -> None:
        if learner.client.ready and not learner.in_flight:
            learner.ask(1)
        replay.turn()

    wait_until(lambda: client.unacknowledged == 0, turn=drain)
    assert replay.actions() == list(range(inserted))


def test_producer_beyond_its_credit_is_refused(replay):
    server = replay.start(samples_per_insert=1.0)
    client, received = replay.bare(replay.endpoints.of("replay.insert"))
    arrays = {"priorities": np.ones(2)} | {
        f"column.{name}": array for name, array in vector_chunk([1, 2]).columns.items()
    }
    for seq in range(12):
        client.send(Insert(seq=seq), arrays)
    replay.until(lambda: sum(server.status().refused_by.values()) >= 5)
    status = server.status()
    # Three of two items fit below the tolerance; at most four wait.
    assert status.waiting_inserts <= 4 and status.items == 6
    assert 6 <= sum(status.refused_by.values()) + status.waiting_inserts <= 9
    errors = [r.message.code for r in received if isinstance(r.message, Error)]
    assert set(errors) <= {"no_credit", "sequence_gap"}


def test_insert_refused_for_lack_of_credit_must_come_before_later_ones(replay, monkeypatch):
    server = replay.start()
    client, received = replay.bare(replay.endpoints.of("replay.insert"))

    def send(seq: int) -> list[str]:
        before = len(received)
        arrays = {"priorities": np.ones(1)} | {
            f"column.{name}": array for name, array in vector_chunk([seq]).columns.items()
        }
        client.send(Insert(seq=seq), arrays)
        replay.until(lambda: len(received) > before)
        return [getattr(r.message, "code", "") for r in received[before:]]

    monkeypatch.setattr(insert_endpoint, "MAX_PENDING", 0)
    assert send(0) == ["no_credit"]
    monkeypatch.undo()
    # Accepting 1 now would acknowledge 0, which has not arrived.
    assert send(1) == ["sequence_gap"]
    assert send(0) == [""] and send(1) == [""]
    assert replay.actions() == [0, 1] and server.status().items == 2


def test_client_resends_at_once_after_a_gap(replay, monkeypatch):
    server = replay.start()
    client = replay.producer()
    replay.until(lambda: client.has_credit)
    with monkeypatch.context() as full:
        full.setattr(insert_endpoint, "MAX_PENDING", 0)
        client.insert(vector_chunk([0]))
        replay.until(lambda: server.status().refused_by.get("no_credit"))
    client.insert(vector_chunk([1]))
    replay.until(lambda: client.unacknowledged == 0)  # the clock stands still
    assert replay.actions() == [0, 1] and server.status().refused_by["sequence_gap"] == 1


def test_client_resends_once_a_second_while_a_gap_stays(replay, monkeypatch):
    server = replay.start()
    client = replay.producer()
    insert(replay, client, 0)
    replay.until(lambda: client.unacknowledged == 0)
    send, sent = client.client.send, []

    def lose_the_first(message, arrays=None):
        sent.append(message.seq)
        return message.seq == 1 or send(message, arrays)

    monkeypatch.setattr(client.client, "send", lose_the_first)
    client.insert(vector_chunk([1]))
    client.insert(vector_chunk([2]))
    replay.until(lambda: server.status().refused_by)
    for resends in (1, 2, 3):
        replay.until(lambda count=resends + 1: server.status().refused_by["sequence_gap"] == count)
        for _ in range(20):
            replay.turn()
        assert sent == [1, 2] * (resends + 1)
        replay.now += 1.5
    monkeypatch.undo()
    replay.until(lambda: client.unacknowledged == 0)
    assert replay.actions() == [0, 1, 2]


def test_older_start_of_one_name_is_superseded(replay):
    replay.start()
    older = replay.producer(epoch=1)
    insert(replay, older, 1)
    replay.until(lambda: older.unacknowledged == 0)
    newer = replay.producer(epoch=2)
    replay.until(lambda: newer.has_credit)
    older.insert(vector_chunk([2]))
    with pytest.raises(RefusedError) as error:
        replay.until(lambda: older.unacknowledged == 0)
    assert error.value.code == "superseded" and replay.actions() == [1]


def test_new_epoch_counts_from_zero_and_is_not_a_duplicate(replay):
    replay.start()
    first = replay.producer(epoch=1)
    for action in range(3):
        insert(replay, first, action)
    replay.until(lambda: first.unacknowledged == 0)
    replay.leave(first)
    second = replay.producer(epoch=2)
    insert(replay, second, 3)
    replay.until(lambda: second.unacknowledged == 0)
    assert replay.actions() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("greeting", "code"),
    [
        ({"run_id": "other"}, "wrong_run"),
        ({"schema_hash": "0" * 16}, "wrong_schema"),
        ({"protocol": 1}, "protocol_version"),
        ({"role": "learner"}, "not_permitted"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_greeting_of_a_producer_is_refused_with_a_code(replay, greeting, code):
    replay.start()
    client = replay.producer(**greeting)
    with pytest.raises(RefusedError) as error:
        replay.until(lambda: client.has_credit)
    assert error.value.code == code


@pytest.mark.parametrize(
    "change",
    [
        {"priorities": np.array([1.0, np.nan])},
        {"priorities": np.array([1.0, -1.0])},
        {"priorities": np.ones(3)},
        {"priorities": np.ones(2, dtype=np.float32)},
        {"column.action": np.zeros(2, dtype=np.int64)},
        {"column.action": np.zeros((2, 1), dtype=np.int32)},
        {"column.extra": np.zeros(2)},
        {"frames.blob": np.zeros(3, dtype=np.uint8)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_bad_chunk_is_refused_and_the_next_valid_one_accepted(replay, change):
    server = replay.start()
    client, received = replay.bare(replay.endpoints.of("replay.insert"))
    good = {"priorities": np.ones(2)} | {
        f"column.{name}": array for name, array in vector_chunk([1, 2]).columns.items()
    }
    client.send(Insert(seq=0), {**good, **change})
    client.send(Insert(seq=1), good)
    replay.until(lambda: len(server.table) == 2)
    replay.until(lambda: received and received[-1].message == InsertAck(
        seq=1, credits=4, volatile_seq=1
    ))  # fmt: skip
    assert server.status().refused_by == {"bad_chunk": 1}
    refused = server.status().refused_chunk
    assert refused is not None and refused.startswith("of actor_000: ")
    codes = [r.message.code for r in received if isinstance(r.message, Error)]
    assert codes == ["bad_chunk"]


def test_refused_chunk_names_its_large_rewards_and_the_remedy(replay):
    server = replay.start()
    client, _ = replay.bare(replay.endpoints.of("replay.insert"))
    columns = dict(vector_chunk([1, 2]).columns) | {"n_step_return": np.float32([3e12, 1.0])}
    arrays = {f"column.{name}": array for name, array in columns.items()}
    client.send(Insert(seq=0), {"priorities": np.array([3e12, 1.0]), **arrays})
    replay.until(lambda: server.status().refused_chunk)
    assert server.status().refused_chunk == (
        "of actor_000: priorities: expected 0 to 1e+12, got 3e+12; rewards of these items reach "
        "3e+12: set env.clip_rewards = true, or divide the rewards in the environment, so that "
        "returns are about -100 to 100"
    )


def filled(replay: InProcessReplay, priorities: list[float], **settings: object) -> InsertClient:
    replay.start(**settings)
    client = replay.producer()
    replay.until(lambda: client.has_credit)
    client.insert(vector_chunk(range(len(priorities)), priorities))
    replay.until(lambda: client.unacknowledged == 0)
    return client


def sample(replay: InProcessReplay, learner: SampleClient) -> Samples:
    replay.until(lambda: learner.client.ready)
    learner.ask(1)
    replay.until(lambda: replay.batches)
    return replay.batches.pop()


def test_batch_has_items_with_their_ids_and_probabilities(replay):
    filled(replay, [1.0, 3.0])
    learner = replay.learner(batch_size=200)
    batch = sample(replay, learner)
    assert len(batch) == 200 and learner.in_flight == 0 and learner.table_items == 2
    assert (batch.item_ids == batch.columns["action"]).all()
    expected = np.where(batch.item_ids == 0, 0.25, 0.75)
    np.testing.assert_allclose(batch.probabilities, expected)
    assert (batch.item_ids == 0).sum() == pytest.approx(50, abs=2)


def test_new_priorities_reach_items_by_id_and_stale_ones_are_counted(replay):
    filled(replay, [1.0, 1.0])
    learner = replay.learner(batch_size=100)
    sample(replay, learner)
    learner.update_priorities(np.array([1, 0, 77, 0]), np.array([9.0, np.nan, 5.0, -1.0]))
    counters = replay.server.table.counters
    replay.until(lambda: counters.updated_priorities == 1)
    assert counters.stale_priorities == 1 and counters.refused_priorities == 2
    batch = sample(replay, learner)
    np.testing.assert_allclose(batch.probabilities, np.where(batch.item_ids == 1, 0.9, 0.1))


@pytest.mark.parametrize(
    "arrays",
    [
        {},
        {"item_ids": np.array([0])},
        {"item_ids": np.array([0]), "priorities": np.ones(2)},
        {"item_ids": np.array([0]), "priorities": np.ones(1, dtype=np.float32)},
        {"item_ids": np.zeros((1, 1), dtype=np.int64), "priorities": np.ones((1, 1))},
        {"item_ids": np.zeros(1), "priorities": np.ones(1)},
    ],
)
def test_malformed_priorities_are_refused(replay, arrays):
    filled(replay, [1.0])
    client, received = replay.bare(
        replay.endpoints.of("replay.sample"), name="learner", role="learner"
    )
    client.send(UpdatePriorities(), arrays)
    replay.until(lambda: any(isinstance(r.message, Error) for r in received))
    assert received[-1].message.code == "bad_request"
    assert replay.server.table.counters.updated_priorities == 0


def test_sample_waits_until_the_table_has_enough(replay):
    replay.start(min_size=3)
    learner, client = replay.learner(), replay.producer()
    replay.until(lambda: learner.client.ready and client.has_credit)
    learner.ask(2)
    replay.until(lambda: replay.server.status().waiting_samples == 2)
    client.insert(vector_chunk([1, 2]))
    replay.until(lambda: client.unacknowledged == 0)
    assert replay.batches == [] and learner.in_flight == 2
    client.insert(vector_chunk([3]))
    replay.until(lambda: len(replay.batches) == 2)


def test_waiting_request_that_is_repeated_is_served_once(replay):
    replay.start(min_size=3)
    learner, client = replay.learner(), replay.producer()
    replay.until(lambda: learner.client.ready and client.has_credit)
    learner.ask(1)
    replay.until(lambda: replay.server.status().waiting_samples == 1)
    replay.now += 11.0
    for _ in range(10):
        replay.turn()
    assert replay.server.status().waiting_samples == 1
    client.insert(vector_chunk([1, 2, 3]))
    replay.until(lambda: replay.batches)
    assert replay.server.table.counters.sampled == 4


@pytest.mark.parametrize("refused", ["priorities", "no_mass", "busy"])
def test_open_requests_are_answered_after_an_error_about_another_message(
    replay, monkeypatch, refused
):
    """Of a queue, items of a reply that is thrown away would be lost."""
    monkeypatch.setattr(sample_endpoint, "MAX_PENDING_SAMPLES", 3)
    server = replay.start(selector="fifo", max_times_sampled=1)
    learner, client = replay.learner(), replay.producer()
    replay.until(lambda: learner.client.ready and client.has_credit)
    learner.ask(3)
    replay.until(lambda: server.status().waiting_samples == 3)
    if refused == "priorities":
        learner.update_priorities(np.zeros(2, dtype=np.int64), np.ones(1))
    elif refused == "no_mass":
        server.samples._pending.popleft()
        server.samples.server.refuse(*server.samples.server.peers, "no_mass", "no priority above 0")
    else:
        learner.ask(1)
    replay.until(lambda: server.status().refused_by and learner._ask_not_before > 0.0)
    assert learner.in_flight == (2 if refused == "no_mass" else 3)
    client.insert(vector_chunk(range(12)))
    replay.until(lambda: not learner.in_flight)
    actions = np.concatenate([batch.columns["action"] for batch in replay.batches])
    assert actions.tolist() == list(range(8 if refused == "no_mass" else 12))


def test_repeated_request_is_ignored_when_the_queue_is_full(replay, monkeypatch):
    monkeypatch.setattr(sample_endpoint, "MAX_PENDING_SAMPLES", 2)
    server = replay.start(min_size=3)
    learner = replay.learner()
    replay.until(lambda: learner.client.ready)
    learner.ask(2)
    replay.until(lambda: server.status().waiting_samples == 2)
    replay.now += 11.0
    for _ in range(10):
        replay.turn()
    assert server.status().waiting_samples == 2 and not server.status().refused_by


@pytest.mark.parametrize("batch_size", [0, -1, 10**9])
def test_batch_size_out_of_range_is_refused(replay, batch_size):
    filled(replay, [1.0])
    client, received = replay.bare(
        replay.endpoints.of("replay.sample"), name="learner", role="learner"
    )
    client.send(Sample(request_id=0, batch_size=batch_size))
    replay.until(lambda: any(isinstance(r.message, Error) for r in received))
    assert received[-1].message.code == "bad_request"


def test_requests_of_a_departed_learner_take_no_items(replay):
    replay.start(selector="fifo", max_times_sampled=1, min_size=3, capacity=1000)
    gone, client = replay.learner(batch_size=3, epoch=1), replay.producer()
    replay.until(lambda: gone.client.ready and client.has_credit)
    gone.ask(1)
    replay.until(lambda: replay.server.status().waiting_samples == 1)
    replay.leave(gone)
    learner = replay.learner(batch_size=3, epoch=2)
    replay.until(lambda: learner.client.ready)
    learner.ask(1)
    replay.until(lambda: replay.server.status().waiting_samples == 1 and learner.in_flight == 1)
    client.insert(vector_chunk([1, 2, 3]))
    replay.until(lambda: replay.batches)
    assert replay.batches[0].columns["action"].tolist() == [1, 2, 3]


def test_all_waiting_inserts_are_processed_in_one_turn(replay, monkeypatch):
    """Only one insert per batch would keep fresh items from the learner."""
    server = replay.start()
    producers = [replay.producer(name=f"actor_{k:03d}") for k in range(3)]
    learner = replay.learner()
    replay.until(lambda: learner.client.ready and all(p.has_credit for p in producers))
    with monkeypatch.context() as held:
        for endpoint in (server.inserts, server.samples):
            held.setattr(endpoint, "work", lambda: False)
        for k, producer in enumerate(producers):
            for chunk in range(4):
                producer.insert(vector_chunk([10 * k + chunk]))
        learner.ask(2)
        replay.until(lambda: server.status().waiting_inserts == 12)
        replay.until(lambda: server.status().waiting_samples == 2)
    server.turn(0.0)
    status = server.status()
    assert (status.items, status.waiting_inserts, status.waiting_samples) == (12, 0, 0)


def test_prefetcher_requests_all_its_batches_at_once(replay):
    server = replay.start(min_size=3)
    client = replay.producer()
    prefetcher = replay.prefetcher(depth=3)
    replay.until(lambda: client.has_credit and server.status().waiting_samples == 3)
    client.insert(vector_chunk([1, 2, 3]))
    replay.until(lambda: prefetcher.ready == 3)
    assert server.table.counters.sampled == 12 and server.table.counters.updated_priorities == 0
    # One batch is taken and one is requested; no priorities were sent.
    batch = prefetcher.get(10.0)
    assert batch is not None and set(batch.data["action"].tolist()) <= {1, 2, 3}
    replay.until(lambda: prefetcher.ready == 3 and server.table.counters.sampled == 16)


def test_snapshot_requested_while_another_is_sent_is_sent_too(replay):
    """The learner's main thread may request one at any moment."""

    class Sampler(SampleClient):
        asked: ClassVar[list[int]] = []

        def snapshot(self, snapshot_id: int) -> bool:
            if not self.asked:  # there is no connection, and the next request comes meanwhile
                prefetcher.snapshot(2)
            self.asked.append(snapshot_id)
            return len(self.asked) > 1 and super().snapshot(snapshot_id)

    replay.start(min_size=3)
    prefetcher = replay.prefetcher(client=Sampler)
    prefetcher.snapshot(1)
    replay.until(lambda: prefetcher.saved is not None and prefetcher.saved.snapshot_id == 2)
    assert set(Sampler.asked) == {1, 2}


def test_prefetcher_returns_transferred_batches_and_raises_out_of_memory(replay):
    def transfer(arrays: Arrays) -> dict[str, torch.Tensor]:
        if len(transferred) == 2:
            raise torch.OutOfMemoryError("no memory left")
        transferred.append(threading.current_thread().name)
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    transferred: list[str] = []
    replay.start(min_size=3)
    client = replay.producer()
    prefetcher = replay.prefetcher(transfer=transfer)
    replay.until(lambda: client.has_credit)
    client.insert(vector_chunk([1, 2, 3]))
    for _ in range(2):
        replay.until(lambda: prefetcher.ready == 1)
        batch = prefetcher.get(10.0)
        assert batch is not None and set(batch.data["action"].tolist()) <= {1, 2, 3}
        assert isinstance(batch.data["action"], torch.Tensor)
    replay.until(lambda: prefetcher.ready == 1)
    with pytest.raises(torch.OutOfMemoryError):
        prefetcher.get(10.0)
    assert all(name.startswith("decode") for name in transferred)


def test_corrupt_items_are_dropped_from_the_batch_and_not_sampled_again(replay, monkeypatch):
    def collate(items: Items) -> Arrays:
        if 2 in items.columns["action"]:
            bad = items.item_ids[items.columns["action"] == 2].tolist()
            raise CorruptItemsError("frame", bad)
        return items.columns

    server = replay.start(min_size=3)
    client = replay.producer()
    prefetcher = replay.prefetcher(batch_size=64, collate=collate)
    replay.until(lambda: client.has_credit and server.status().waiting_samples == 1)
    client.insert(vector_chunk([1, 2, 3]))
    replay.until(lambda: prefetcher.ready == 1)
    batch = prefetcher.get(10.0)
    assert batch is not None and set(batch.data["action"].tolist()) == {1, 3}
    assert 1 <= len(batch.item_ids) < 64 and prefetcher.dropped_batches == 0
    assert set(batch.corrupt_ids) == {server.table.oldest_id + 1} and prefetcher.corrupt_items > 0
    replay.until(lambda: server.table.counters.updated_priorities > 0)
    replay.until(lambda: (batch := prefetcher.get(0.0)) and not batch.corrupt_ids)


def test_oldest_producer_is_forgotten_when_there_are_too_many_and_greets_again(replay, monkeypatch):
    monkeypatch.setattr(insert_endpoint, "MAX_PRODUCERS", 2)
    server = replay.start()
    first, second, third = (replay.producer(name=f"actor_{k:03d}") for k in range(3))
    replay.until(lambda: first.has_credit and second.has_credit and third.has_credit)
    assert server.status().producers == 2
    for number, client in enumerate((first, second, third)):
        client.insert(vector_chunk([number]))
    replay.until(
        lambda: not (first.unacknowledged or second.unacknowledged or third.unacknowledged)
    )
    assert server.status().producers == 2 and server.status().items == 3


def test_learner_repeats_its_requests_to_a_restarted_server(replay):
    filled(replay, [1.0])
    learner = replay.learner()
    sample(replay, learner)
    replay.restart()
    learner.ask(2)  # into the broken connection: nothing may stay in flight
    replay.until(lambda: len(replay.server.samples.server.peers) == 1 and learner.client.ready)
    assert learner.in_flight == 0


def test_server_survives_when_every_priority_is_zero(replay):
    """A network that predicts exactly gives priorities of 0: no mass, but no crash."""
    client = filled(replay, [0.0, 0.0])
    learner = replay.learner()
    replay.until(lambda: learner.client.ready)
    learner.ask(1)
    replay.until(lambda: replay.server.status().refused_by.get("no_mass"))
    replay.until(lambda: client.has_credit)
    client.insert(vector_chunk([7], [1.0]))
    replay.until(lambda: client.unacknowledged == 0)

    def ask_again() -> None:
        if learner.client.ready and not learner.in_flight:
            learner.ask(1)
        replay.now += 0.5
        replay.turn()

    wait_until(lambda: replay.batches, turn=ask_again)
    assert set(replay.batches[0].columns["action"].tolist()) == {7}


def test_server_survives_when_items_are_removed_after_two_samples(replay):
    filled(replay, [1.0] * 8, max_times_sampled=2)
    learner = replay.learner()
    batches = [sample(replay, learner) for _ in range(2)]
    assert sum(len(batch) for batch in batches) == 8


def test_operator_gets_the_servers_status(replay):
    filled(replay, [1.0, 2.0])
    client, received = replay.bare(
        replay.endpoints.of("replay.sample"), name="op", role="operator", schema_hash=""
    )
    client.send(Status())
    replay.until(lambda: len(received) == 2)
    status = received[1].message.status
    assert (status["items"], status["capacity"], status["inserted"]) == (2, 1000, 2)
    assert status["bytes"] == 2 * 12 and status["producers"] == 1


def test_priorities_of_lost_items_do_not_reach_items_of_a_restarted_server(replay):
    replay.start()
    client = replay.producer()
    replay.until(lambda: client.has_credit)
    client.insert(vector_chunk([10, 11]))
    prefetcher = replay.prefetcher(batch_size=8, depth=2)
    replay.until(lambda: prefetcher.ready == 2)
    old = prefetcher.get(1.0)
    replay.restart()
    replay.until(lambda: client.has_credit and client.client.ready)
    client.insert(vector_chunk([20, 21]))
    replay.until(lambda: client.unacknowledged == 0)
    counters = replay.server.table.counters
    replay.until(lambda: counters.sampled > 0)
    prefetcher.put_priorities(old.item_ids, np.full(8, 1e6))
    prefetcher.get(1.0)
    replay.until(lambda: counters.updated_priorities + counters.stale_priorities == 8)
    assert counters.stale_priorities == 8
