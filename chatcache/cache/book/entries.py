"""One segment as the book has it, and what a turn is told of a prompt's segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from chatcache.cache.book.eviction import Candidate
from chatcache.cache.book.namespace import chain_digest
from chatcache.cache.book.policy import is_over
from chatcache.cache.book.transfer_rate import NO_TRANSFER, Transfer
from chatcache.cache.segments import Block, Resident, Span
from chatcache.cache.views import (
    TIERS,
    Held,
    SegmentRow,
    Tier,
    TierRun,
    joined,
    num_tokens_of,
    to_read,
)
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

    def held(self, span: Span, tier: Tier) -> Held:
        """What a restore of a span of it has to bring from a tier. A file is read as a whole."""
        share = (span.stop - span.start) / (self.stop - self.start)
        in_ram = int(self.num_bytes * share)
        return Held(span.stop, tier, self.disk_bytes if tier == "disk" else in_ram)

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
    """What is held of a prompt, and where. A snapshot; acquire a lease to rely on it."""

    spans: tuple[Span, ...] = ()
    held: tuple[Held, ...] = ()

    @property
    def num_tokens(self) -> int:
        return self.held[-1].stop if self.held else 0

    @property
    def ram_tokens(self) -> int:
        return self.num_tokens - self.disk_tokens

    @property
    def disk_tokens(self) -> int:
        return to_read(self.held)[0]


class Lease:
    """A held prefix: its segments are neither evicted nor changed until it is released.

    `checkpoint` is the segment with the states behind the last token, for models with states.
    `held` says of each span where it lies, and how many bytes have to be brought from there.
    Without `is_use` it is looked at, for no turn.
    """

    def __init__(
        self,
        ids: TokenIds,
        spans: Sequence[Span],
        num_matched: int,
        checkpoint: Span | None = None,
        held: Sequence[Held] = (),
        *,
        is_use: bool = True,
    ):
        self.is_use = is_use
        self.ids = ids
        self.spans = tuple(spans)
        self.num_tokens = self.spans[-1].stop if self.spans else 0
        self.num_matched = num_matched
        self.checkpoint = checkpoint
        self.held = tuple(held)

    def up_to(self, position: int) -> Lease:
        """The same, less what lies behind `position`; for models without states."""
        spans = [
            replace(span, stop=min(span.stop, position))
            for span in self.spans
            if span.start < position
        ]
        held = [held for held in self.held if held.stop <= position]
        return Lease(self.ids, spans, self.num_matched, held=held, is_use=self.is_use)


@dataclass(frozen=True, slots=True)
class RestoreResult:
    """How far a restore got. `problem` is why it ended before the end of the lease.

    `runs` are all tokens that are held now; those that were held before it are in RAM. `transfers`
    are what was brought from each tier, and how long that took."""

    num_tokens: int
    runs: tuple[TierRun, ...]
    bytes_read: int
    problem: str | None = None
    is_damage: bool = False
    transfers: Mapping[Tier, Transfer] = field(default_factory=dict)

    @property
    def disk_tokens(self) -> int:
        return num_tokens_of(self.runs, "disk")

    def then(self, other: RestoreResult) -> RestoreResult:
        """This one, gone on with by another."""
        transfers = dict(self.transfers)
        for tier, more in other.transfers.items():
            transfers[tier] = more.plus(transfers.get(tier, NO_TRANSFER))
        return replace(
            other,
            runs=joined((*self.runs, *other.runs)),
            bytes_read=self.bytes_read + other.bytes_read,
            transfers=transfers,
        )
