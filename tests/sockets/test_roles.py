"""Permissions: every message in every role at every endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import zmq

from apex.acting.agent import Agent
from apex.acting.decisions import Decision, Exploration, Inputs
from apex.acting.exploration import Sampled
from apex.algos.policy import Policy
from apex.config.loading import merge, parse
from apex.daemons.inference.batched_policy import batched
from apex.daemons.inference.client import result_to_arrays
from apex.daemons.inference.endpoint import ActEndpoint
from apex.daemons.learner.parameter_server import ParameterServer
from apex.daemons.learner.parameter_versions import PublicationBoard
from apex.daemons.log_format import EventFormatter
from apex.daemons.replay.daemon import ReplayServer
from apex.daemons.status.reports import to_wire
from apex.data.chunk_bytes import chunk_to_arrays
from apex.data.schema import Array
from apex.envs.spec import StepResult
from apex.runs.directory import RunFacts
from apex.wire.codec import decode, encode
from apex.wire.endpoints import Endpoints, InferenceEndpoints, LearnerEndpoints, ReplayEndpoints
from apex.wire.messages import (
    Act,
    Actions,
    Error,
    EvaluationReport,
    GetParams,
    Heartbeat,
    Hello,
    Insert,
    Message,
    Role,
    Sample,
    Snapshot,
    Status,
    StatusReply,
    UpdatePriorities,
)
from apex.wire.sockets import context
from tests.support.builders import VECTOR_SCHEMA, env_spec, hello, vector_chunk
from tests.support.messages import EVERY_MESSAGE
from tests.support.statuses import inference_report, learner_report
from tests.support.waiting import wait_until

PERMITTED = {
    ("replay.insert", "actor"): {"Insert"},
    ("replay.insert", "inference"): {"Insert"},
    ("replay.sample", "learner"): {"Sample", "UpdatePriorities", "Snapshot"},
    ("replay.sample", "operator"): {"Status", "Snapshot"},
    ("learner.params", "actor"): {"GetParams", "Heartbeat", "ReportMoments"},
    ("learner.params", "inference"): {"GetParams", "ReportMoments"},
    ("inference.act", "actor"): {"Act", "Leave"},
    ("inference.act", "operator"): {"Status"},
    ("learner.params", "evaluator"): {"GetParams", "Heartbeat", "EvaluationReport"},
    ("learner.params", "operator"): {"Status", "Snapshot"},
}
"""As in PROTOCOL.md; a role that is not listed is refused at the endpoint."""
MESSAGES = [message for message in EVERY_MESSAGE if not isinstance(message, Hello)]


class ZeroPolicy(Policy):
    """Always takes action 0."""

    def act(self, inputs: Inputs, exploration: Exploration | None) -> Decision:
        actions = np.zeros(len(inputs.observations), dtype=np.int64)
        return Decision(actions, inputs.core_state, {})


class Servers:
    """All servers of a suite, in this process."""

    def __init__(self, folder: Path, stack: ExitStack, durability: str = "off") -> None:
        self.endpoints = Endpoints(
            ReplayEndpoints(f"ipc://{folder}/i", f"ipc://{folder}/s"),
            LearnerEndpoints(f"ipc://{folder}/p"),
            InferenceEndpoints(f"ipc://{folder}/a"),
        )
        raw = {"env": {"id": "X-v0"}, "algorithm": {"name": "apex_dqn"},
               "replay": {"capacity": 100, "min_size": 1, "durability": durability},
               "actor": {"chunk_length": 2, "num_envs": 2},
               "learner": {"batch_size": 4, "prefetch": 1}}  # fmt: skip
        facts = RunFacts("run", env_spec((3,), "float32"), VECTOR_SCHEMA)
        config = parse(merge(raw, {}))
        self.replay = ReplayServer(
            config, self.endpoints, facts, folder / "replay", clock_ns=lambda: 0
        )
        stack.callback(self.replay.close)
        self.learner = ParameterServer(
            self.endpoints, facts, 1, 0, {}, PublicationBoard(),
            status=learner_report, on_evaluation=lambda mean: None,
            on_snapshot=lambda: None,
        )  # fmt: skip
        self.acts = ActEndpoint(
            self.endpoints.of("inference.act"), config, facts,
            lambda *place: Agent(
                facts.env, 2, 0, clip_rewards=False, exploration=Sampled([(0,), (1,)])
            ),
            status=inference_report,
        )  # fmt: skip
        stack.callback(self.acts.server.close)
        self.learner.start()
        stack.callback(self.learner.close)

    def answers(self, endpoint: str, *messages: tuple[Message, dict[str, Array]]) -> list[Message]:
        """All that one connection receives after sending its messages."""
        with context().socket(zmq.DEALER) as socket:
            socket.connect(self.endpoints.of(endpoint).address)
            for message, arrays in messages:
                socket.send_multipart(encode(message, arrays))
            socket.send_multipart([b"the end"])
            found: list[Message] = []

            def over() -> bool:
                return bool(found) and getattr(found[-1], "code", "") == "malformed"

            def turn() -> None:
                self.replay.turn(0.001)
                self.acts.receive()
                if self.acts.waiting_envs:
                    self.acts.begin(batched(ZeroPolicy(), 2), 0)
                    self.acts.finish()
                while not over() and socket.poll(1):
                    found.append(decode(socket.recv_multipart()).message)

            wait_until(over, turn=turn)
            return found[:-1]

    def codes(self, endpoint: str, role: str, message: Message | None) -> list[str]:
        """The errors that answer a greeting and a message."""
        said = [hello(f"{role}_000", role), *filter(None, [message])]
        answers = self.answers(endpoint, *((one, {}) for one in said))
        return [answer.code for answer in answers if isinstance(answer, Error)]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(tmp_path_factory.mktemp("servers"), stack)


@pytest.mark.parametrize(
    "endpoint", ["replay.insert", "replay.sample", "learner.params", "inference.act"]
)
@pytest.mark.parametrize("role", get_args(Role))
def test_role_may_send_only_what_the_protocol_permits(servers, endpoint, role):
    allowed = PERMITTED.get((endpoint, role))
    greeted = servers.codes(endpoint, role, None)
    assert greeted == ([] if allowed is not None else ["not_permitted"])
    for message in MESSAGES:
        codes = servers.codes(endpoint, role, message)
        if allowed is None:
            assert codes == ["not_permitted", "hello_required"], message
        elif type(message).__name__ in allowed:
            assert "not_permitted" not in codes, message
        else:
            assert codes == ["not_permitted"], message


def test_every_permission_is_covered():
    names = {type(message).__name__ for message in MESSAGES}
    assert set().union(*PERMITTED.values()) <= names


def test_text_of_a_peer_is_escaped_in_the_log(servers, caplog):
    forged = "x\n2026-11-23T00:00:00.000Z INFO replay stopped\x1b[2J"
    servers.answers("replay.insert", (hello(run_id=forged), {}))
    (record,) = [r for r in caplog.records if "wrong_run" in r.getMessage()]
    line = EventFormatter("replay").format(record)
    assert "INFO replay stopped" in line and "\n" not in line and "\x1b" not in line


EXTREMES = (-(2**63), -1, 0, 1, 2, 2**31, 2**53, 2**53 + 1, 2**63 - 1, 2**64 - 1)


def random_acts(
    rng: np.random.Generator, count: list[int], value: list[float]
) -> list[tuple[Message, dict[str, Array]]]:
    """The `Act` messages of a beginning and of a step of two environments."""
    place = {"slot": count[1], "incarnation": count[2]}
    observations = np.full((2, 3), rng.choice([0, np.nan, 3e38]), np.float32)
    step = StepResult(observations, np.array(value[:2]), *rng.random((3, 2)) < 0.5)
    return [
        (Act(seq=count[0], begins=True, **place), {"observation": np.zeros((2, 3), np.float32)}),
        (Act(seq=count[0] + 1, begins=False, **place), result_to_arrays(step)),
    ]


def random_message(rng: np.random.Generator, role: str) -> tuple[Message, dict[str, Array]]:
    """A well-formed and permitted message with numbers at the limits of their ranges."""
    number = [int(EXTREMES[k]) for k in rng.integers(0, len(EXTREMES), 6)]
    count = [min(max(n, 0), 2**53) for n in number]
    value = [float(rng.choice([0.0, -1.0, 1.7e308, np.nan, np.inf])) for _ in range(3)]
    beat = Heartbeat(
        phase="stepping", param_version=number[1], env_steps=count[2],
        env_steps_per_s=value[0], episodes=count[3], mean_return=value[1],
    )  # fmt: skip
    report = EvaluationReport(returns=(value[1], value[2]),
    )  # fmt: skip
    chunk = chunk_to_arrays(vector_chunk([1, 2])) if rng.random() < 0.5 else {}
    ids = {
        "item_ids": np.array([n % 2**63 - rng.integers(2) for n in number], dtype=np.int64),
        "priorities": np.array([*value, *value]),
    }
    permitted: dict[str, list[tuple[Message, dict[str, Array]]]] = {
        "actor": [
            (beat, {}),
            (GetParams(newer_than=number[0]), {}),
            (Insert(seq=int(rng.choice([0, 1, 2]))), chunk),
            (Insert(seq=number[0]), chunk),
            *random_acts(rng, count, value),
        ],
        "inference": [
            (GetParams(newer_than=number[0]), {}),
            (Insert(seq=number[0]), chunk),
        ],
        "evaluator": [(beat, {}), (report, {})],
        "learner": [
            (Sample(request_id=number[0], batch_size=number[1]), {}),
            (UpdatePriorities(), ids),
            (Snapshot(snapshot_id=number[0]), {}),
        ],
        "operator": [(Snapshot(snapshot_id=number[0]), {})],
    }
    return permitted[role][int(rng.integers(len(permitted[role])))]


def test_extreme_numbers_from_an_actor_do_not_end_the_inference_server(servers):
    rng = np.random.default_rng(8)
    answered = refused = 0
    for number in range(60):
        count = [int(EXTREMES[k]) for k in rng.integers(2, 6, 3)]
        value = [float(rng.choice([0.0, -1.0, 1.7e308, np.nan])) for _ in range(3)]
        greeting = (hello(f"name_{number % 7}"), {})
        begin, step = random_acts(rng, count, value)
        for question in (begin, step):  # repeated: the first time nothing is decided yet
            servers.answers("inference.act", greeting, question)
            (*_, answer) = servers.answers("inference.act", greeting, question)
            assert isinstance(answer, Actions) or question is step, answer
        good = (
            np.isfinite(step[1]["observation"]).all() and (np.abs(step[1]["rewards"]) <= 1e30).all()
        )
        assert isinstance(answer, Actions) == good, (answer, step)
        answered, refused = answered + good, refused + (not good)
    assert answered >= 10 and refused >= 10 and servers.acts.agents >= 7


def test_extreme_numbers_from_any_role_neither_end_a_daemon_nor_fill_its_disk(tmp_path):
    rng = np.random.default_rng(7)
    with ExitStack() as stack:
        servers = Servers(tmp_path, stack, durability="log")
        for _ in range(200):
            endpoint, role = list(PERMITTED)[rng.integers(len(PERMITTED))]
            epoch = int(EXTREMES[rng.integers(len(EXTREMES))])
            greeting = hello(f"name_{rng.integers(20)}", role, epoch=epoch)
            rest = [random_message(rng, role) for _ in range(9)]
            servers.answers(endpoint, (greeting, {}), *rest)
        for server in (servers.learner, servers.replay):
            encode(StatusReply(status=to_wire(server.status())))
        operator = hello("operator_1", "operator")
        _, status = servers.answers("learner.params", (operator, {}), (Status(), {}))
        assert isinstance(status, StatusReply) and 0 < status.status["env_steps"] <= 2**53
        found = servers.replay.status()
        assert found.inserted > 10 and found.updated_priorities + found.sampled > 0
        assert found.log_bytes < 400_000
