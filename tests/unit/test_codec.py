"""The message codec: round trips, and DecodeError for every malformed message."""

from __future__ import annotations

import itertools
import re

import msgspec
import numpy as np
import pytest

from apex.data.array_bytes import Buffer
from apex.errors import DecodeError
from apex.wire import messages
from apex.wire.codec import decode, encode
from apex.wire.messages import PROTOCOL_VERSION, Insert, Sample, StatusReply
from tests.support.builders import hello
from tests.support.messages import EVERY_MESSAGE
from tests.support.paths import ROOT

BAD_NAMES = [
    "",
    "../../etc/passwd",
    "a/b",
    "a\nb",
    "a\n",
    "\x1b[2Jx",
    "-x",
    ".x",
    "a" * 65,
    "ä",
    "a ",
]

ARRAYS = {
    "bytes": np.arange(256, dtype=np.uint8),
    "int32": np.array([[1, -2], [3, 2**31 - 1]], dtype=np.int32),
    "int64": np.array([2**62], dtype=np.int64),
    "float32": np.linspace(0, 1, 24, dtype=np.float32).reshape(2, 3, 4),
    "float64": np.array([np.nan, np.inf, 1e-300]),
    "scalar": np.array(1.5),
    "empty": np.zeros((0, 7), dtype=np.float32),
    "strided": np.arange(20, dtype=np.int32).reshape(4, 5)[::2, ::-1],
    "transposed": np.arange(6, dtype=np.float64).reshape(2, 3).T,
}


def as_bytes(frames) -> list[bytes]:
    return [bytes(frame) for frame in frames]


def code_of(frames: list[bytes]) -> str:
    with pytest.raises(DecodeError) as error:
        decode(frames)
    return error.value.code


def header(**fields: object) -> bytes:
    plain = {"type": "insert", "protocol": PROTOCOL_VERSION, "buffers": [], "seq": 0}
    return msgspec.msgpack.encode({**plain, **fields})


def with_buffer(name: str, dtype: str, shape: object, data: bytes) -> list[bytes]:
    return [header(buffers=[[name, dtype, shape]]), data]


@pytest.mark.parametrize("message", EVERY_MESSAGE, ids=lambda m: type(m).__name__)
def test_message_round_trip_is_equal(message):
    received = decode(as_bytes(encode(message)))
    assert received.message == message and received.arrays == {}


def test_every_kind_of_message_is_in_the_list_above():
    assert {type(m) for m in EVERY_MESSAGE} == set(messages.AnyMessage.__args__)


@pytest.mark.parametrize("name", ARRAYS)
def test_array_round_trip_is_equal(name):
    received = decode(as_bytes(encode(Insert(seq=1), {"x": ARRAYS[name]})))
    array = received.arrays["x"]
    assert array.dtype == ARRAYS[name].dtype and array.shape == ARRAYS[name].shape
    np.testing.assert_array_equal(array, ARRAYS[name])
    assert not array.flags.writeable


def test_many_arrays_keep_their_names_and_order():
    received = decode(as_bytes(encode(Insert(seq=1), ARRAYS)))
    assert list(received.arrays) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(received.arrays[name], array)


def test_buffers_are_raw_little_endian():
    frames = as_bytes(encode(Insert(seq=1), {"x": np.array([1, 256], dtype=np.int32)}))
    assert frames[1] == b"\x01\x00\x00\x00\x00\x01\x00\x00"
    declared = msgspec.msgpack.decode(frames[0])["buffers"]
    assert declared == [["x", "int32", [2]]]


def test_big_endian_array_is_not_sent_with_its_bytes_swapped():
    array = np.array([1, 2], dtype=">i4")
    received = decode(as_bytes(encode(Insert(seq=1), {"x": array})))
    assert received.arrays["x"].tolist() == [1, 2]


def test_encoding_copies_no_contiguous_array():
    array = np.zeros(1000, dtype=np.float32)
    (_, buffer) = encode(Insert(seq=1), {"x": array})
    assert np.shares_memory(np.frombuffer(buffer, dtype=np.float32), array)


MALFORMED = {
    "no_frames": [],
    "empty_header": [b""],
    "random_header": [b"\xc1\xff\x00garbage"],
    "not_a_map": [msgspec.msgpack.encode([1, 2])],
    "truncated_header": [header()[:-1]],
    "huge_header": [header(type="error", code="x", detail="y" * 2_000_000)],
    "no_protocol": [msgspec.msgpack.encode({"type": "insert", "seq": 0})],
    "protocol_is_text": [header(protocol="1")],
    "no_type": [msgspec.msgpack.encode({"protocol": PROTOCOL_VERSION, "seq": 0})],
    "unknown_type": [header(type="format_disk")],
    "type_is_number": [header(type=3)],
    "extra_field": [header(surprise=1)],
    "missing_field": [msgspec.msgpack.encode({"type": "insert", "protocol": PROTOCOL_VERSION})],
    "wrong_field_type": [header(seq="0")],
    "float_for_int": [header(seq=0.5)],
    "bad_utf8": [header(type="error", code="x", detail="abc").replace(b"abc", b"\xff\xfe\xfd")],
    "unknown_role": [
        msgspec.msgpack.encode({**msgspec.to_builtins(hello()), "type": "hello", "role": "root"})
    ],
    "nested_too_deeply": [header(seq=None).replace(b"\xc0", b"\x91" * 60_000)],
    "buffer_missing": [header(buffers=[["x", "uint8", [1]]])],
    "buffer_undeclared": [header(), b"1"],
    "too_many_buffers": [header(buffers=[[str(k), "uint8", [0]] for k in range(65)])] + [b""] * 65,
    "buffer_is_a_map": [header(buffers=[{"name": "x"}]), b""],
    "same_name_twice": [header(buffers=[["x", "uint8", [1]]] * 2), b"1", b"2"],
    "too_short": with_buffer("x", "float32", [2, 3], bytes(23)),
    "too_long": with_buffer("x", "float32", [2, 3], bytes(25)),
    "dtype_object": with_buffer("x", "object", [1], bytes(8)),
    "dtype_bool": with_buffer("x", "bool", [8], bytes(8)),
    "dtype_code": with_buffer("x", "O", [1], bytes(8)),
    "dtype_struct": with_buffer("x", "i4,O", [1], bytes(12)),
    "dtype_endian": with_buffer("x", ">i4", [1], bytes(4)),
    "negative_shape": with_buffer("x", "uint8", [-1], b"1"),
    "negative_shapes": with_buffer("x", "uint8", [-1, -1], b"1"),
    "huge_shape": with_buffer("x", "float64", [2**62, 2**62], b"1"),
    "overflowing_shape": with_buffer("x", "uint8", [2**32, 2**32], b""),
    "empty_with_huge_side": with_buffer("x", "uint8", [0, 2**63], b""),
    "empty_with_huge_sides": with_buffer("x", "uint8", [0, 2**62, 2**62], b""),
    "many_dimensions": with_buffer("x", "uint8", [1] * 33, b"1"),
    "shape_of_floats": with_buffer("x", "uint8", [1.5], b"1"),
    "shape_is_text": with_buffer("x", "uint8", "1", b"1"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_message_is_a_decode_error(name):
    assert code_of(MALFORMED[name]) == "malformed"


def test_unchanged_header_of_these_tests_is_well_formed():
    """Guards the table above: only each entry's change may be malformed."""
    assert decode([header()]).message == Insert(seq=0)
    assert decode(with_buffer("x", "float32", [2, 3], bytes(24))).arrays["x"].shape == (2, 3)


@pytest.mark.parametrize("version", [0, 1, PROTOCOL_VERSION - 1, PROTOCOL_VERSION + 1, -1, 2**63])
def test_other_protocol_version_has_its_own_code(version):
    # Nothing else of another version is read, not even the message's type.
    assert code_of([header(protocol=version, type="from_the_future", other=1)]) == (
        "protocol_version"
    )


def mutate(frames: list[bytes], rng: np.random.Generator) -> list[bytes]:
    frames = list(frames)
    kind, at = rng.integers(6), int(rng.integers(len(frames)))
    frame = bytearray(frames[at] or b"\0")
    position = int(rng.integers(len(frame)))
    if kind == 0:
        frame[position] = rng.integers(256)
    elif kind == 1:
        frame[position] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        del frame[position:]
    elif kind == 3:
        frame[position:position] = rng.bytes(int(rng.integers(1, 9)))
    elif kind == 4:
        return frames[:at] + frames[at + 1 :]
    else:
        frames.insert(at, frames[int(rng.integers(len(frames)))])
        return frames
    frames[at] = bytes(frame)
    return frames


def test_random_mutations_raise_nothing_but_decode_errors():
    rng = np.random.default_rng(0)
    small = {name: ARRAYS[name][:2] for name in ("bytes", "int32", "empty")}
    valid = [as_bytes(encode(m)) for m in EVERY_MESSAGE]
    valid += [
        as_bytes(encode(m, small)) for m in (Insert(seq=1), Sample(request_id=1, batch_size=2))
    ]
    refused = 0
    for _ in range(6000):
        frames = valid[rng.integers(len(valid))]
        for _ in range(rng.integers(1, 4)):
            frames = mutate(frames, rng) or [b""]
        try:
            decode(frames)
        except DecodeError:
            refused += 1
    assert 3000 < refused < 6000


def test_status_values_stay_plain_when_they_look_like_other_things():
    """A map stays a map: nothing in a status becomes an object."""
    tricky = {"type": "hello", "__reduce__": ["os.system", ["true"]], "protocol": 9}
    assert decode(as_bytes(encode(StatusReply(status=tricky)))).message.status == tricky


def test_buffers_of_a_message_are_declared_by_the_codec():
    message = Insert(seq=1, buffers=(Buffer("lie", "uint8", (99,)),))
    received = decode(as_bytes(encode(message, {"x": np.zeros(2)})))
    assert list(received.arrays) == ["x"] and received.arrays["x"].shape == (2,)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_name_with_path_or_control_characters_is_malformed(name):
    assert decode(encode(hello("actor_000-b.2"))).message.name == "actor_000-b.2"
    assert code_of(as_bytes(encode(hello(name)))) == "malformed"


def test_example_of_protocol_md_is_what_encode_gives():
    text = (ROOT / "PROTOCOL.md").read_text()
    begin = text.index("    frame 0, ")
    example = text[begin : text.index("    frame 1, ", begin)]
    tokens = [
        list(itertools.takewhile(re.compile("([0-9a-f]{2})+").fullmatch, line.split()))
        for line in example.splitlines()[1:]
    ]
    arrays = {"priorities": np.array([1.0, 0.5]), "column.action": np.array([1, 0], np.int32)}
    frames = encode(messages.Insert(seq=7), arrays)
    assert bytes(frames[0]).hex() == "".join(itertools.chain(*tokens))
