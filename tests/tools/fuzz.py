"""Fuzz the decoders with millions of broken messages and log records.

    python -m tests.tools.fuzz --inputs 10000000 --seed 1 --out benchmarks/reliability

Each input is a valid message or record with a few random changes. It must be read, or refused
with the proper error, within a second, and the process's memory must not grow. Chunks are checked
against a schema and decompressed, acts against an environment's spec.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import click
import msgspec
import numpy as np
import psutil

from apex.daemons.inference.client import result_to_arrays
from apex.daemons.inference.endpoint import check_act
from apex.data.chunk_bytes import chunk_from_arrays, chunk_to_arrays
from apex.data.chunks import Samples
from apex.data.frame_compression import decompress
from apex.data.observations import to_columns
from apex.data.schema import Arrays, Schema
from apex.envs.spec import StepResult
from apex.errors import CorruptItemsError, DecodeError, SchemaError
from apex.replay.log.records import Inserted, Opening, ProducerMark, encode_record, record_at
from apex.wire import messages
from apex.wire.codec import decode, encode
from benchmarks.options import ResultsFolder
from benchmarks.provenance import provenance
from tests.support.builders import (
    FRAME_SCHEMA,
    PARTS_SCHEMA,
    PARTS_SPEC,
    VECTOR_SCHEMA,
    frame_chunk,
    hello,
    parts_chunk,
    parts_observations,
    vector_chunk,
)

Frames = list[bytes]
MARKER = b"12345678"
SLOWEST_S = 1.0
ACT_ENVS = 2
"""Environments of an actor with central inference."""
INTERESTING = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xc0", b"\xd9\xff", b"\xdb\xff\xff\xff\xff",
               b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xcf" + b"\xff" * 8,
               b"\xd3\x80" + bytes(7), b"\xcb\x7f\xf0" + bytes(6), b"\xc4",
               b"\x91" * 64)  # fmt: skip
"""Limits of ranges, and msgpack prefixes of wrong lengths and numbers."""
ODD_VALUES: tuple[object, ...] = (
    None, True, -1, 0, 1, 2**31, 2**63 - 1, 2**64 - 1, -(2**63), 0.5, float("nan"), float("inf"),
    "", "x" * 5000, "\0\n\x1b[2J", "uint8", "float64", "column.action", b"\xff" * 40, [], {},
    [0], [2**62, 2**62], [-1, 3], [1] * 100, [["priorities", "float64", [3]]], {"a": 1}, "insert",
)  # fmt: skip


def valid_messages() -> list[Frames]:
    """One example of every message with contents, as frames."""
    vectors = chunk_to_arrays(vector_chunk([1, 2, 3]))
    pixels = chunk_to_arrays(frame_chunk([1, 2, 3]))
    parts = chunk_to_arrays(parts_chunk([1, 2, 3]))
    flags = np.zeros((3, ACT_ENVS), np.bool_)
    step = StepResult(parts_observations(ACT_ENVS, 3), np.ones(ACT_ENVS), *flags)
    act = {"seq": 2, "slot": 1, "incarnation": 0}
    priorities = {"item_ids": np.arange(4), "priorities": np.ones(4)}
    encoded = [
        encode(hello()),
        encode(messages.Insert(seq=3), vectors),
        encode(messages.Insert(seq=2**40), pixels),
        encode(messages.Insert(seq=5), parts),
        encode(messages.Act(begins=True, **act), to_columns(step.observations)),
        encode(messages.Act(begins=False, **act), result_to_arrays(step)),
        encode(messages.Sample(request_id=1, batch_size=512)),
        encode(messages.UpdatePriorities(), priorities),
        encode(messages.GetParams(newer_than=-1)),
        encode(messages.Heartbeat(phase="stepping", mean_return=0.5)),
        encode(messages.EvaluationReport(returns=(1.0, -2.5))),
        encode(messages.StatusReply(status={"a": {"b": [1.5, None, "x"]}})),
        encode(messages.Error(code="x", detail="y")),
    ]  # fmt: skip
    return [[bytes(frame) for frame in frames] for frames in encoded]


def valid_records() -> list[bytes]:
    """Records of the insert log."""
    buffers, body = msgspec_buffers()
    inserted = Inserted(
        producer="actor_000", epoch=1, seq=2, first_id=3, items=3, inserted=4, sampled=5,
        buffers=buffers,
    )  # fmt: skip
    opening = Opening("run", "hash", 1000, {"actor_000": ProducerMark(1, 2)}, 3, 4)
    return [
        b"".join(bytes(part) for part in encode_record(MARKER, header, frames))
        for header, frames in ((inserted, body), (opening, []))
    ]


def msgspec_buffers() -> tuple[tuple[messages.Buffer, ...], list[bytes]]:
    """The buffers of a chunk with frames, and their declarations."""
    frames = encode(messages.Insert(seq=0), chunk_to_arrays(frame_chunk([1, 2, 3])))
    header = msgspec.msgpack.decode(frames[0], type=messages.Insert)
    return header.buffers, [bytes(frame) for frame in frames[1:]]


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A copy with one change."""
    if not data:
        return rng.randbytes(rng.randrange(8))
    at = rng.randrange(len(data))
    how = rng.randrange(6)
    if how == 0:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if how == 1:
        new = rng.choice(INTERESTING)
        return data[:at] + new + data[at + len(new) :]
    if how == 2:
        return data[:at]
    if how == 3:
        return data[:at] + rng.choice(INTERESTING) + data[at:]
    if how == 4:
        return data[:at] + data[at + rng.randrange(1, 9) :]
    other = rng.randrange(len(data))
    return data[:at] + data[other : other + rng.randrange(1, 33)] + data[at:]


def overwritten(data: bytes, rng: random.Random) -> bytes:
    """A copy of the same length with other bytes at one place, such as in the array of a buffer."""
    at = rng.randrange(len(data) + 1)
    new = rng.choice((*INTERESTING, rng.randbytes(rng.randrange(1, 9))))[: len(data) - at]
    return data[:at] + new + data[at + len(new) :]


def mutated_header(header: bytes, rng: random.Random) -> bytes:
    """The header with one value replaced by an odd one; still valid msgpack."""
    try:
        fields = msgspec.msgpack.decode(header)
        place = fields
        while (
            isinstance(place[key := rng.choice(_keys(place))], dict | list) and rng.random() < 0.8
        ):
            if not place[key]:
                break
            place = place[key]
        place[key] = rng.choice(ODD_VALUES)
        return msgspec.msgpack.encode(fields)
    except (msgspec.MsgspecError, UnicodeError, TypeError, IndexError, KeyError):
        return mutated(header, rng)


def _keys(container: dict[str, object] | list[object]) -> list[object]:
    return list(container if isinstance(container, dict) else range(len(container)))


def mutated_frames(frames: Frames, others: list[Frames], rng: random.Random) -> Frames:
    """A copy of a message with one to three changes, in its frames or among them."""
    frames = list(frames)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        how = rng.randrange(32)
        at = rng.randrange(len(frames)) if frames else 0
        if how >= 20 and len(frames) > 1:
            at = rng.randrange(1, len(frames))
            frames[at] = overwritten(frames[at], rng)
        elif how < 8 and frames:
            frames[0] = mutated_header(frames[0], rng)
        elif how < 11 and frames:
            frames[0] = mutated(frames[0], rng)
        elif how < 16 and frames:
            frames[at] = mutated(frames[at], rng)
        elif how == 16 and frames:
            del frames[at]
        elif how == 17:
            frames.insert(at, rng.choice(rng.choice(others)))
        elif how == 18:
            frames.insert(at, b"")
        elif frames:
            frames[at], frames[0] = frames[0], frames[at]
    return frames


def read_message(frames: Frames, schema: Schema) -> str:
    """The outcome of decoding a message; any error but those for bad data is a defect."""
    try:
        received = decode(frames)
    except DecodeError as error:
        return error.code
    try:
        if isinstance(received.message, messages.Act):
            check_act(received.message, received.arrays, PARTS_SPEC, ACT_ENVS)
        elif isinstance(received.message, messages.Insert):
            read_chunk(received.arrays, schema)
    except CorruptItemsError:
        return "corrupt items"
    except SchemaError:
        return f"bad {'chunk' if isinstance(received.message, messages.Insert) else 'act'}"
    return "read"


def read_chunk(arrays: Arrays, schema: Schema) -> None:
    """Check a chunk as the replay server does, and decompress its items as the learner does.

    Raises:
        SchemaError: the chunk does not match the schema.
        CorruptItemsError: its frames cannot be decompressed.
    """
    chunk = chunk_from_arrays(arrays)
    chunk.check(schema)
    ids = np.arange(len(chunk))
    decompress(Samples(ids, np.ones(len(ids)), chunk.columns, chunk.frames), schema)


def read_record(data: bytes) -> str:
    """The outcome of reading a record."""
    found = record_at(memoryview(data), 0, MARKER)
    return "damaged" if isinstance(found, str) else "read"


@dataclass
class Report:
    """Result of a run of the fuzzer."""

    inputs: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    failures: list[str] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)


def resident_mb() -> float:
    """Resident memory of this process, in MB."""
    return psutil.Process().memory_info().rss / 1e6


def fuzz(inputs: int, seed: int) -> Report:
    """Try a number of inputs."""
    rng, report = random.Random(seed), Report()
    originals, records = valid_messages(), valid_records()
    for number in range(inputs):
        began = time.perf_counter()
        given: object = None
        try:
            if number % 8:
                given = frames = mutated_frames(rng.choice(originals), originals, rng)
                schema = rng.choice((FRAME_SCHEMA, VECTOR_SCHEMA, PARTS_SCHEMA))
                outcome = read_message(frames, schema)
            else:
                given = record = mutated(rng.choice(records), rng)
                outcome = read_record(record)
            report.outcomes[outcome] += 1
        except Exception as error:  # this is a defect
            report.failures.append(f"{type(error).__name__}: {error}: {given!r}")
        report.slowest_s = max(report.slowest_s, time.perf_counter() - began)
        report.inputs += 1
        if number % max(1, inputs // 100) == 0:
            report.rss_mb.append(round(resident_mb(), 1))
    return report


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.option("--inputs", type=click.IntRange(1), default=10_000_000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True)
@click.option("--out", type=ResultsFolder(), help="For the results.")
def main(inputs: int, seed: int, out: Path | None) -> None:
    """See `--help`."""
    began = time.monotonic()
    report = fuzz(inputs, seed)
    seconds = time.monotonic() - began
    growth = report.rss_mb[-1] / report.rss_mb[len(report.rss_mb) // 10] - 1
    lines = [
        f"{report.inputs:,} inputs of seed {seed} in {seconds:.0f} s",
        f"{len(report.failures)} failures; slowest {1000 * report.slowest_s:.1f} ms",
        f"resident memory {report.rss_mb[0]} to {report.rss_mb[-1]} MB, {growth:+.1%} from a tenth",
        *(f"  {count:>12,} {outcome}" for outcome, count in report.outcomes.most_common()),
        *report.failures[:20],
    ]
    click.echo("\n" + "\n".join(lines))
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / f"fuzz-{seed}.json").write_text(
            json.dumps({**provenance(), **vars(report)}, indent=1) + "\n"
        )
    if report.failures or report.slowest_s > SLOWEST_S or growth > 0.05:
        sys.exit(1)


if __name__ == "__main__":
    main()
