"""A minute of `make chaos`: nothing acknowledged is lost, and nothing is there twice."""

from __future__ import annotations

from pathlib import Path

from tests.chaos import run_chaos, table
from tests.faults import Chaos


def test_a_minute_of_faults_loses_nothing(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=2)
    run_chaos(chaos, minutes=1.0)
    assert chaos.clean, table(chaos)
    last = chaos.audits[-1]
    assert last.acknowledged > 5_000 and last.present > 5_000
    assert sum(len(seconds) for seconds in chaos.recoveries.values()) >= 5, table(chaos)
    assert "SIGKILL replay" in chaos.recoveries, table(chaos)
