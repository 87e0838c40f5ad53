"""What the doctor found, by its state."""

from __future__ import annotations

from collections.abc import Iterable

from apex.doctor.findings import Finding


def of_state(findings: Iterable[Finding], state: str) -> list[Finding]:
    """The findings of one state."""
    return [finding for finding in findings if finding.state == state]


def only(findings: Iterable[Finding]) -> Finding:
    """The one finding that there is."""
    (finding,) = findings
    return finding
