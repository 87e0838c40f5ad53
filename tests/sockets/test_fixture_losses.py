"""Serial training against the losses of the fixtures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.fixtures import KEPT, PRESETS, losses

TOLERANCE = 1e-4
"""Relative, of each number, on another CPU or version of torch. Runs with torch's three code paths
(`ATEN_CPU_CAPABILITY`), with MKL's and oneDNN's oldest one and with numpy's differed by 2e-6 at
most in 200 updates."""


@pytest.mark.parametrize("name", PRESETS)
def test_200_updates_reproduce_the_losses_of_the_fixture(name: str, tmp_path: Path) -> None:
    """To the bit where torch and the CPU are those that the fixture was made with."""
    kept = losses.read(KEPT / "losses" / f"{name}.json")
    assert len(kept.updates) == 200
    found = losses.updates(name, tmp_path)
    tolerance = 0.0 if losses.made_with() == kept.made_with else TOLERANCE
    differing = [
        (step, now, then)
        for step, (now, then) in enumerate(zip(found, kept.updates, strict=True))
        if not all(math.isclose(*pair, rel_tol=tolerance) for pair in zip(now, then))
    ]
    assert not differing, f"{len(differing)} updates, first {differing[0]}, tolerance {tolerance:g}"
