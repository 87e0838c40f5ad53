"""A minute of `make chaos`: nothing acknowledged is lost, and nothing is there twice."""

from __future__ import annotations

from pathlib import Path

from tests.tools.chaos import run_chaos, table
from tests.tools.faults import Chaos


def test_half_a_minute_of_faults_loses_nothing(tmp_path: Path) -> None:
    chaos = Chaos(tmp_path, seed=2)
    run_chaos(chaos, minutes=0.5)
    assert chaos.clean, table(chaos)
    last = chaos.audits[-1]
    assert last.acknowledged > 2_000 and last.present > 2_000
    assert sum(len(seconds) for seconds in chaos.recoveries.values()) >= 3, table(chaos)
    assert "SIGKILL replay" in chaos.recoveries, table(chaos)
