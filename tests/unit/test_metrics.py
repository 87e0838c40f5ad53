"""Rates over a window, and metrics files of bounded size."""

from __future__ import annotations

import json
import logging
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import RecordWriter

from apex.daemons.metrics import JsonLines, MetricsLog, Rate
from tests.support.clock import Clock
from tests.support.sizes import bytes_held


def test_rate_is_the_mean_since_the_start_at_first():
    clock = Clock()
    rate = Rate(10.0, clock)
    clock.now += 2.0
    rate.add(30)
    rate.add(10)
    assert rate.per_second() == pytest.approx(20.0)
    clock.now += 2.0
    assert rate.per_second() == pytest.approx(10.0)


def test_rate_forgets_what_is_older_than_the_window():
    clock = Clock()
    rate = Rate(10.0, clock)
    for _ in range(30):
        clock.now += 1.0
        rate.add(100)
    clock.now += 0.5
    assert rate.per_second() == pytest.approx(100.0)
    for _ in range(9):
        clock.now += 1.0
        rate.add(20)
    # Nine bins of 20 and one of 100 within the last ten seconds
    assert rate.per_second() == pytest.approx((9 * 20 + 100) / 10)
    clock.now += 11.0
    assert rate.per_second() == 0.0


def test_memory_of_a_rate_is_bounded():
    clock = Clock()
    rate = Rate(10.0, clock)
    for seconds in range(50):
        for _ in range(1000):
            clock.now += 0.001
            rate.add(1)
            rate.per_second()
        if seconds == 20:
            size = bytes_held(rate)
    assert size < 10_000 and bytes_held(rate) <= 1.1 * size
    assert rate.per_second() == pytest.approx(1000.0, rel=0.06)


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_json_lines_append_to_an_existing_file(tmp_path):
    path = tmp_path / "a.jsonl"
    for start in (0, 2):
        lines = JsonLines(path, 10_000)
        lines.write({"n": start})
        lines.write({"n": start + 1})
        lines.close()
    assert [record["n"] for record in records(path)] == [0, 1, 2, 3]


def test_json_lines_stay_bounded_and_keep_the_newest(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = JsonLines(path, 1000)
    for number in range(500):
        lines.write({"n": number, "text": "x" * 40})
        sizes = [file.stat().st_size for file in tmp_path.iterdir()]
        assert len(sizes) <= 2 and max(sizes) <= 1100
    lines.close()
    kept = [r["n"] for r in records(tmp_path / "a.jsonl.1") + records(path)]
    assert kept == list(range(500 - len(kept), 500)) and len(kept) > 15


def test_json_lines_are_readable_after_each_write(tmp_path):
    lines = JsonLines(tmp_path / "a.jsonl", 1000)
    lines.write({"n": 1})
    assert records(tmp_path / "a.jsonl") == [{"n": 1}]
    lines.close()


def test_full_disk_loses_a_record_and_raises_nothing(caplog):
    lines = JsonLines(Path("/dev/full"), 1000)
    with caplog.at_level(logging.WARNING, "apex.daemons.metrics"):
        lines.write({"n": 1})
    assert "cannot write /dev/full" in caplog.text
    lines.write({"n": 2})
    lines.close()


def test_failed_rotation_loses_no_later_record(tmp_path, monkeypatch):
    lines = JsonLines(tmp_path / "a.jsonl", 100)

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", full_disk)
        lines.write({"n": 1, "text": "x" * 200})
    lines.write({"n": 2})
    lines.close()
    files = sorted(tmp_path.iterdir(), reverse=True)
    assert [r["n"] for file in files for r in records(file)] == [1, 2]


def test_metrics_log_writes_time_step_and_null_for_non_finite_values(tmp_path):
    log = MetricsLog(tmp_path, "actor_000", 1.0, tensorboard=False, clock=lambda: 12.34567)
    log.write({"loss": float("nan"), "q": float("-inf"), "x": 0.5, "phase": "idle"}, step=7)
    log.close()
    assert records(tmp_path / "actor_000.jsonl") == [
        {"time": 12.346, "step": 7, "loss": None, "q": None, "x": 0.5, "phase": "idle"}
    ]


def event_records(path: Path) -> list[bytes]:
    """The events of a file in TensorBoard's format: lengths, data, and a checksum after each."""
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(data[12 : 12 + length])
        data = data[16 + length :]
    return found


def test_event_file_equals_tensorboardx_output(tmp_path):
    log = MetricsLog(tmp_path, "learner", 1.0, tensorboard=True, clock=lambda: 12.5)
    log.write({"loss": 0.5, "name": "no number", "q mean": 2}, step=7)
    log.close()
    (path,) = (tmp_path / "tensorboard" / "learner").iterdir()
    first, second = event_records(path)
    assert Event.FromString(first).file_version == "brain.Event:2"
    event = Event.FromString(second)
    assert (event.wall_time, event.step) == (12.5, 7)
    assert [(v.tag, v.simple_value) for v in event.summary.value] == [("loss", 0.5), ("q_mean", 2)]
    expected = RecordWriter(str(tmp_path / "expected"))
    for record in (first, second):
        expected.write(record)
    expected.close()
    assert path.read_bytes() == (tmp_path / "expected").read_bytes()


def test_event_files_stay_bounded_and_keep_the_newest(tmp_path):
    log = MetricsLog(tmp_path, "learner", 0.02, tensorboard=True)
    folder = tmp_path / "tensorboard" / "learner"
    for step in range(2000):
        log.write({"loss": 0.5, "name": "no number"}, step=step)
        if step % 100 == 0:
            assert sum(path.stat().st_size for path in folder.iterdir()) <= 2 * 20_100
    log.close()
    newest = max(folder.iterdir())
    assert Event.FromString(event_records(newest)[-1]).step == 1999
    assert sum(path.stat().st_size for path in tmp_path.glob("*.jsonl*")) <= 2 * 20_200
