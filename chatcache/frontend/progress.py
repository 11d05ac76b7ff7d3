"""Progress of long work: it reports how far it is, and whoever takes a report can cancel it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class CalledOffError(Exception):
    """Raised by a report to cancel the work, and caught by whoever started it."""


class Report(Protocol):
    """Takes `done` of `total` (0: unknown). Raises CalledOffError."""

    def __call__(
        self, stage: str, done: int = 0, total: int = 0, *, is_bytes: bool = False
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Progress:
    """What was reported last."""

    stage: str
    done: int = 0
    total: int = 0
    is_bytes: bool = False


def unheard(stage: str, done: int = 0, total: int = 0, *, is_bytes: bool = False) -> None:
    """The report of a front end that shows no progress."""
