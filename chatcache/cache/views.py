"""What the cache shows of itself: frozen rows of numbers, for panels and listings."""

from __future__ import annotations

from dataclasses import dataclass


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
    in_vram: bool = False

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
