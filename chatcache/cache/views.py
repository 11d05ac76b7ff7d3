"""What the cache shows of itself: frozen rows of numbers, for panels and listings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from chatcache.token_ids import NO_IDS, TokenIds

# Where K and V lie. What is in the memory of a GPU ("vram") counts as held in RAM.
Tier = Literal["vram", "ram", "disk"]
TIERS: tuple[Tier, ...] = ("vram", "ram", "disk")


@dataclass(frozen=True, slots=True)
class TierRun:
    """The tokens of a prefix up to `stop`, from where the run before it ends: all from one tier."""

    stop: int
    tier: Tier


@dataclass(frozen=True, slots=True)
class Held:
    """The tokens of a prefix up to `stop`, from where the one before it ends, lie in one segment:
    `num_bytes` have to be brought from its tier."""

    stop: int
    tier: Tier
    num_bytes: int


def to_read(held: Iterable[Held], start: int = 0) -> tuple[int, int]:
    """How many tokens behind `start` lie in files alone, and the bytes of these files."""
    num_tokens = num_bytes = before = 0
    for each in held:
        if each.tier == "disk" and each.stop > start:
            num_tokens += each.stop - max(start, before)
            num_bytes += each.num_bytes
        before = each.stop
    return num_tokens, num_bytes


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


# the tree

TreeChange = Literal["inserted", "split", "evicted", "spilled", "restored", "hit", "given_up"]


@dataclass(frozen=True, slots=True)
class TreeEdge:
    """One edge: tokens `start` to `stop` of all paths through it.

    `parent` is the number of the edge above, -1 at the root; edges are numbered in the order of
    `TreeShape.edges`, parents first. `num_below` are the ends of paths that share it; one that
    nothing goes on from is the end of one. `segments` are the ids of those that hold its K and V:
    none for a hole, which leads to what is held and is itself to be computed again. Times are Unix
    time."""

    parent: int
    start: int
    ids: TokenIds
    tiers: tuple[Tier, ...]
    num_bytes: int
    num_below: int
    hits: int
    last_used: float
    is_pinned: bool = False
    is_live: bool = False
    segments: tuple[str, ...] = ()

    @property
    def stop(self) -> int:
        return self.start + len(self.ids)


@dataclass(frozen=True, slots=True)
class TreeEvent:
    """One change: tokens `start` to `stop` of the path that ends with `tail`, its last ids.

    What the tiers mean: "inserted" in RAM (computed) or on disk (found there); "spilled" to disk;
    "evicted" from it; "restored" from disk into the live context, or kept in RAM or on the device
    from there. `segments` are
    those that it happened to, and `parent` the one before. Of one of which nothing `is_gone`
    remains, `ids` are its own. `cut` is where an edge was split."""

    number: int
    at: float
    change: TreeChange
    start: int
    stop: int
    tier: Tier | None = None
    tail: TokenIds = NO_IDS
    num_bytes: int = 0
    segments: tuple[str, ...] = ()
    parent: str = ""
    ids: TokenIds = NO_IDS
    cut: int = 0
    is_gone: bool = False


@dataclass(frozen=True, slots=True)
class TreeSegment:
    """A segment that holds K and V of edges."""

    segment_id: str
    tiers: tuple[Tier, ...]
    num_bytes: int
    hits: int
    is_pinned: bool = False


def tiers_of(segments: Iterable[TreeSegment]) -> tuple[Tier, ...]:
    """Where any of them lies."""
    found = {tier for segment in segments for tier in segment.tiers}
    return tuple(tier for tier in TIERS if tier in found)


def ends_below(parents: Sequence[int]) -> list[int]:
    """How many ends of paths share each edge, for the numbers of the edges above, parents first."""
    found = [0] * len(parents)
    for number in range(len(parents) - 1, -1, -1):
        found[number] = found[number] or 1
        if parents[number] >= 0:
            found[parents[number]] += found[number]
    return found


@dataclass(frozen=True, slots=True)
class TreeShape:
    """`segments` are those that the edges name. `num_more` lie on disk that are not shown."""

    edges: tuple[TreeEdge, ...]
    events: tuple[TreeEvent, ...] = field(default=())
    segments: tuple[TreeSegment, ...] = ()
    num_more: int = 0
