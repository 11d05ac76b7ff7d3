"""One segment as the book has it, and what a turn is told of a prompt's segments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chatcache.cache.book.eviction import Candidate
from chatcache.cache.book.namespace import chain_digest
from chatcache.cache.book.policy import is_over
from chatcache.cache.segments import Block, Resident, Span
from chatcache.cache.views import TIERS, SegmentRow, Tier, TierRun, num_tokens_of
from chatcache.token_ids import TokenIds


@dataclass(slots=True)
class Entry:
    """A segment that is in the memory of a device (`resident`), in RAM (`block`), on disk (`path`),
    or several of these."""

    segment_id: str
    parent_id: str | None
    start: int
    stop: int
    token_ids: TokenIds
    num_bytes: int
    last_used: float
    block: Block | None = None
    path: Path | None = None
    disk_bytes: int = 0
    hits: int = 0
    num_leases: int = 0
    can_spill: bool = True
    is_pending: bool = False
    is_pinned: bool = False
    has_states: bool = False
    resident: Resident | None = None

    @property
    def is_in_memory(self) -> bool:
        """Whether it can be gone on with without a read from disk."""
        return self.block is not None or self.resident is not None

    @property
    def tiers(self) -> tuple[Tier, ...]:
        """Where it lies now, the fastest first."""
        places = zip(TIERS, (self.resident, self.block, self.path), strict=True)
        return tuple(tier for tier, place in places if place is not None)

    @property
    def is_held(self) -> bool:
        """Nothing may take it away."""
        return self.num_leases > 0 or self.is_pinned

    def is_over(self, ttl: float | None, now: float) -> bool:
        """Whether nothing holds it and its time is over."""
        return not self.is_held and is_over(self.last_used, ttl, now)

    def candidate(self, num_bytes: int, ttl: float | None) -> Candidate:
        """For the eviction of a tier where it takes `num_bytes` and lives `ttl` seconds unused."""
        return Candidate(
            segment_id=self.segment_id,
            parent_id=self.parent_id,
            num_bytes=num_bytes,
            last_used=self.last_used,
            is_held=self.is_held,
            expires_at=None if ttl is None else self.last_used + ttl,
        )

    def row(self, namespace: str, *, is_live: bool = False) -> SegmentRow:
        return SegmentRow(
            segment_id=self.segment_id,
            namespace=namespace,
            parent_id=self.parent_id,
            start=self.start,
            stop=self.stop,
            num_bytes=self.num_bytes,
            in_ram=self.block is not None,
            on_disk=self.path is not None,
            is_live=is_live,
            is_pinned=self.is_pinned,
            last_used=self.last_used,
            hits=self.hits,
            in_vram=self.resident is not None,
        )


def new_entry(
    namespace: str, path: TokenIds, start: int, block: Block, now: float, *, can_spill: bool
) -> Entry:
    """The segment that a block is, which holds a path from `start` on."""
    return Entry(
        segment_id=chain_digest(namespace, start, path),
        parent_id=None,
        start=start,
        stop=len(path),
        token_ids=path[start:],
        num_bytes=block.num_bytes,
        last_used=now,
        block=block,
        can_spill=can_spill,
        has_states=block.has_states,
    )


@dataclass(frozen=True, slots=True)
class Lookup:
    """What is held of a prompt: tokens per tier. A snapshot; acquire a lease to rely on it."""

    num_tokens: int
    ram_tokens: int
    disk_tokens: int
    disk_bytes: int
    spans: tuple[Span, ...]


class Lease:
    """A held prefix: its segments are neither evicted nor changed until it is released.

    `checkpoint` is the segment with the states behind the last token, for models with states.
    Without `is_use` it is looked at, for no turn.
    """

    def __init__(
        self,
        ids: TokenIds,
        spans: Sequence[Span],
        num_matched: int,
        checkpoint: Span | None = None,
        disk: tuple[int, int] | None = None,
        *,
        is_use: bool = True,
    ):
        self.is_use = is_use
        self.ids = ids
        self.spans = tuple(spans)
        self.num_tokens = self.spans[-1].stop if self.spans else 0
        self.num_matched = num_matched
        self.checkpoint = checkpoint
        # From which position on files have to be read, and the bytes of all of them.
        self.disk_start, self.disk_bytes = disk or (self.num_tokens, 0)

    def up_to(self, position: int) -> Lease:
        """The same, less what lies behind `position`; for models without states."""
        spans = [
            replace(span, stop=min(span.stop, position))
            for span in self.spans
            if span.start < position
        ]
        return Lease(self.ids, spans, self.num_matched)


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """How far a restore got. `problem` is why it ended before the end of the lease.

    `runs` are all tokens that are held now; those that were held before it are in RAM."""

    num_tokens: int
    runs: tuple[TierRun, ...]
    bytes_read: int
    problem: str | None = None
    is_damage: bool = False

    @property
    def disk_tokens(self) -> int:
        return num_tokens_of(self.runs, "disk")
