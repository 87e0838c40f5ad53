"""Fuzzing of messages and log records: each is read or refused."""

from __future__ import annotations

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from apex.errors import DecodeError
from apex.wire.codec import decode
from apex.wire.messages import PROTOCOL_VERSION, AnyMessage, Insert
from tests.support.builders import FRAME_SCHEMA, PARTS_SCHEMA, VECTOR_SCHEMA
from tests.support.messages import EVERY_MESSAGE
from tests.tools.fuzz import fuzz, read_message, read_record, valid_messages, valid_records

TAGS = sorted({type(message).__struct_config__.tag for message in EVERY_MESSAGE})
SCHEMAS = (FRAME_SCHEMA, VECTOR_SCHEMA, PARTS_SCHEMA)
FIELDS = sorted(
    {f for message in EVERY_MESSAGE for f in message.__struct_fields__} - {"buffers", "protocol"}
)

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats()
    | st.text(max_size=20) | st.binary(max_size=20),
    lambda children: st.lists(children, max_size=4)
    | st.dictionaries(st.text(max_size=10), children, max_size=4),
    max_leaves=10,
)  # fmt: skip
buffers = st.lists(
    st.tuples(
        st.text(max_size=10),
        st.sampled_from(["uint8", "int32", "float64", "object", "V8", ""]),
        st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 4), max_size=10),
    ),
    max_size=4,
)
headers = st.fixed_dictionaries(
    {"type": st.sampled_from(TAGS), "protocol": st.sampled_from([PROTOCOL_VERSION, 0, -1])},
    optional={"buffers": buffers | plain, **dict.fromkeys(FIELDS, plain)},
)
messages = st.lists(st.binary(max_size=64), max_size=5) | st.tuples(
    headers.map(msgspec.msgpack.encode), st.lists(st.binary(max_size=64), max_size=4)
).map(lambda parts: [parts[0], *parts[1]])


QUIET = {"derandomize": True, "database": None, "deadline": 1000,
         "suppress_health_check": [HealthCheck.too_slow]}  # fmt: skip

edits = st.lists(st.tuples(st.integers(0, 400), st.binary(max_size=4)), min_size=1, max_size=3)


@settings(max_examples=3_000, **QUIET)
@given(st.sampled_from(valid_messages()), st.integers(0, 3), edits)
def test_edited_frames_are_read_or_refused(frames, chosen, changes):
    frames = list(frames)
    chosen %= len(frames)
    for place, new in changes:
        at = place % (len(frames[chosen]) + 1)
        frames[chosen] = frames[chosen][:at] + new + frames[chosen][at + len(new) :]
    outcome = outcome_of(frames)
    assert outcome in ("malformed", "protocol_version") or outcome == len(frames) - 1


@settings(max_examples=500, **QUIET)
@given(messages)
def test_any_frames_are_read_or_refused(frames):
    outcome = outcome_of(frames)
    assert outcome in ("malformed", "protocol_version") or outcome == len(frames) - 1


def outcome_of(frames: list[bytes]) -> str | int:
    """The code of the refusal, or how many arrays were read."""
    try:
        received = decode(frames)
    except DecodeError as error:
        return error.code
    assert isinstance(received.message, AnyMessage)
    return len(received.arrays)


def test_mutants_of_valid_messages_and_records_are_read_or_refused():
    report = fuzz(inputs=40_000, seed=7)
    assert report.failures == []
    assert report.slowest_s < 1.0
    assert set(report.outcomes) == {
        "malformed", "protocol_version", "read", "bad chunk", "corrupt items", "bad act", "damaged",
    }  # fmt: skip
    assert report.outcomes["bad chunk"] > 1000 and report.outcomes["bad act"] > 300
    assert report.rss_mb[-1] < report.rss_mb[10] + 20


def test_unchanged_messages_and_records_are_valid():
    for frames in valid_messages():
        outcomes = [read_message(frames, schema) for schema in SCHEMAS]
        inserts = isinstance(decode(frames).message, Insert)
        assert sorted(outcomes) == (["bad chunk"] * 2 + ["read"] if inserts else ["read"] * 3)
    assert [read_record(record) for record in valid_records()] == ["read", "read"]
