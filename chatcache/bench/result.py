"""What a run of the bench comes to: rows of times per contender, and single figures."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from chatcache.bench.limits import Limits

Group = Literal["first token", "next token", "keeping", "sharing", "prefix", "program"]
GROUPS: dict[Group, str] = {
    "first token": "Time to the first token",
    "next token": "One token of the answer",
    "keeping": "Keeping what was read",
    "sharing": "Forks and switches",
    "prefix": "A short prefix, cold disk",
    "program": "The program, on this model",
}
TRANSFORMERS, LLAMA_CPP, CHATCACHE = "transformers", "llama.cpp", "chatcache"
# What a short prefix is compared with: itself, by three ways.
FROM_DISK, COMPUTED, CHOSEN = "from disk", "computed", "as a chat"
COLUMNS = (TRANSFORMERS, LLAMA_CPP, CHATCACHE, FROM_DISK, COMPUTED, CHOSEN)


def p99(values: Sequence[float]) -> float | None:
    """What at most one value in a hundred exceeds; None without values."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1] if values else None


@dataclass(slots=True)
class Row:
    """One line of the table: seconds per contender, and the seconds that physics asks for.

    `against` names the row whose transformers figure this row's ratio is taken with. `is_p99`:
    what counts is not the median but what only one in a hundred exceeds.
    """

    name: str
    title: str
    group: Group
    bound_by: str = ""
    against: str = ""
    is_p99: bool = False
    samples: dict[str, list[float]] = field(default_factory=dict)
    limit: float | None = None

    def add(self, contender: str, seconds: float) -> None:
        self.samples.setdefault(contender, []).append(seconds)

    @property
    def num_samples(self) -> int:
        return max((len(values) for values in self.samples.values()), default=0)

    def median(self, contender: str) -> float | None:
        values = self.samples.get(contender)
        return statistics.median(values) if values else None

    def p99(self, contender: str) -> float | None:
        return p99(self.samples.get(contender, []))

    def shown(self, contender: str) -> float | None:
        return self.p99(contender) if self.is_p99 else self.median(contender)


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured number that is no time. `bound` is what it should not exceed."""

    name: str
    title: str
    value: float
    unit: Literal["bytes", "tokens", "percent", "ratio"]
    bound: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """Seconds to the first token behind a history of `tokens`, by line of the chart."""

    tokens: int
    seconds: dict[str, float]


def decades(points: Sequence[Point]) -> tuple[float, float]:
    """The powers of ten of seconds that the times of a chart lie between."""
    times = [at for point in points for at in point.seconds.values()]
    return (
        10.0 ** math.floor(math.log10(min(times))),
        10.0 ** math.ceil(math.log10(max(times) * 1.0001)),
    )


@dataclass(slots=True)
class BenchResult:
    conditions: dict[str, Any]
    limits: Limits
    rows: dict[str, Row]
    bytes_written: int
    figures: list[Figure] = field(default_factory=list)
    curve: Sequence[Point] = ()
    left_out: list[str] = field(default_factory=list)
