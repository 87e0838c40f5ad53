"""Half a minute of `make chaos`: no acknowledged item is lost or duplicated."""

from __future__ import annotations

from pathlib import Path

from tests.tools.chaos import run_chaos, table
from tests.tools.faults import Chaos
from tests.tools.ledger import ITEMS


def test_no_item_is_lost_or_duplicated_under_random_faults(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=2)

    def enough() -> bool:
        """Whether enough was inserted and broken; a busy machine needs longer."""
        faults = sum(len(seconds) for seconds in chaos.recoveries.values())
        inserted = ITEMS * chaos.acknowledged() > 3_000
        return inserted and faults >= 3 and "SIGKILL replay" in chaos.recoveries

    run_chaos(chaos, 0.5, enough, most_minutes=5.0)
    assert chaos.clean, table(chaos)
    last = chaos.audits[-1]
    assert last.acknowledged > 2_000 and last.present > 2_000
    assert sum(len(seconds) for seconds in chaos.recoveries.values()) >= 3, table(chaos)
    assert "SIGKILL replay" in chaos.recoveries, table(chaos)
