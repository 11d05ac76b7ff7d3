"""One line of the report, and what all of them mean for a script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "note", "problem", "damage"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `advice` says what to do when it is not ok."""

    subject: str
    status: Status
    detail: str
    advice: str = ""


def exit_code(findings: Sequence[Finding]) -> int:
    """5 for damage, 4 when something keeps chatcache from working, else 0."""
    statuses = {finding.status for finding in findings}
    return 5 if "damage" in statuses else 4 if "problem" in statuses else 0
