"""Selection of the doctor's findings by state."""

from __future__ import annotations

from collections.abc import Iterable

from apex.doctor.findings import Finding


def of_state(findings: Iterable[Finding], state: str) -> list[Finding]:
    """The findings of one state."""
    return [finding for finding in findings if finding.state == state]


def only(findings: Iterable[Finding]) -> Finding:
    """The single finding; fails if there are more or none."""
    (finding,) = findings
    return finding
