"""The audit of chaos tests: lost inserts are found, evicted ones are excused."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from apex.launch.prepare import prepare_run, preset_config
from apex.replay.log.durable_table import DurableTable
from apex.replay.log.records import segments
from apex.replay.table.table import make_table
from apex.runs.directory import RunDirectory
from tests.tools.ledger import ITEMS, audit, ledger_chunk

CAPACITY = 200


class Stub:
    """A producer whose inserts were all acknowledged."""

    def __init__(self, inserts: int, volatile: frozenset[int] = frozenset()) -> None:
        self._inserts, self._volatile = inserts, volatile

    def acknowledged(self) -> dict[int, dict[int, bool]]:
        return {1: {seq: seq not in self._volatile for seq in range(self._inserts)}}


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    settings = [f"replay.capacity={CAPACITY}", "replay.min_size=10", "replay.segment_mb=0.002"]
    return prepare_run(tmp_path / "run", preset_config("cartpole", settings))


def fill(run: RunDirectory, inserts: int, skip: frozenset[int] = frozenset()) -> None:
    """Insert without ever removing a segment."""
    config, facts = run.config(), run.facts()
    keeper = DurableTable(
        run.replay, config.replay, facts, lambda first: make_table(config, facts.schema, first)
    )
    with closing(keeper):
        for seq in range(inserts):
            if seq not in skip:
                keeper.insert("ledger_0", 1, seq, ledger_chunk(0, 1, seq))


def test_audit_passes_when_every_item_is_present_or_evicted(
    run: RunDirectory, tmp_path: Path
) -> None:
    fill(run, 30)
    found = audit(run, [Stub(30)], tmp_path / "scratch")
    assert (found.acknowledged, found.present, found.evicted) == (300, CAPACITY, 100)
    assert (found.lost, found.duplicated, found.altered, found.holes) == ([], [], 0, 0)


def test_missing_insert_in_a_table_that_was_never_full_is_lost(run, tmp_path):
    fill(run, 12, skip=frozenset({0, 7}))
    found = audit(run, [Stub(12)], tmp_path / "scratch")
    assert {insert[2] for insert in found.lost} == {0, 7} and len(found.lost) == 2 * ITEMS
    volatile = audit(run, [Stub(12, frozenset({0, 7}))], tmp_path / "scratch")
    assert volatile.lost == [] and volatile.volatile == 2 * ITEMS


def test_missing_oldest_inserts_of_a_full_table_are_holes(run, tmp_path):
    fill(run, 40)
    for segment in segments(run.replay)[:-3]:
        segment.path.unlink()
    (run.replay / "table.state").unlink()
    found = audit(run, [Stub(40)], tmp_path / "scratch")
    assert found.lost == [], "they are old enough to have been evicted"
    assert found.holes == CAPACITY - found.present > 50


def test_missing_newest_insert_of_a_full_table_is_lost(run, tmp_path):
    fill(run, 40, skip=frozenset({35}))
    found = audit(run, [Stub(40)], tmp_path / "scratch")
    assert {insert[2] for insert in found.lost} == {35} and found.holes == 0
