"""What the cache shows of itself: frozen rows of numbers, for panels and listings."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

# Where K and V lie.
Tier = Literal["ram", "disk"]


@dataclass(frozen=True, slots=True)
class TierRun:
    """The tokens of a prefix up to `stop`, from where the run before it ends: all from one tier."""

    stop: int
    tier: Tier


def joined(runs: Iterable[TierRun]) -> tuple[TierRun, ...]:
    """The same tokens in as few runs as can be: none is empty, no two neighbours have one tier."""
    found: list[TierRun] = []
    for run in runs:
        if run.stop <= (found[-1].stop if found else 0):
            continue
        if found and found[-1].tier == run.tier:
            found.pop()
        found.append(run)
    return tuple(found)


def num_tokens_of(runs: Iterable[TierRun], tier: Tier) -> int:
    """How many tokens of a prefix come from a tier."""
    start = total = 0
    for run in runs:
        total += run.stop - start if run.tier == tier else 0
        start = run.stop
    return total


@dataclass(frozen=True, slots=True)
class SegmentRow:
    """One segment for the panel and for `cache list`."""

    segment_id: str
    namespace: str
    parent_id: str | None
    start: int
    stop: int
    num_bytes: int
    in_ram: bool
    on_disk: bool
    is_live: bool
    is_pinned: bool
    last_used: float
    hits: int

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class TierUse:
    num_bytes: int
    budget_bytes: int
    num_segments: int


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """What it would cost to continue a journal: tokens per source, and the time until ready."""

    ram_tokens: int
    disk_tokens: int
    recompute_tokens: int
    estimated_ms: float | None
    disk_bytes: int = 0


@dataclass(frozen=True, slots=True)
class SessionKV:
    """What is held of a conversation; `bytes_shared` is in segments that others use as well."""

    ram_tokens: int
    disk_tokens: int
    bytes_shared: int
    bytes_owned: int
