"""One segment as the prefix cache keeps book of it, and what it asks of tensors.

The cache is free of torch: a block of K and V is anything that has a size and can list its memory,
and the live KV is anything that can take it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from chatcache.cache.book.eviction import Candidate
from chatcache.cache.book.radix import Span
from chatcache.cache.files.segfile import TensorSource
from chatcache.cache.views import SegmentRow
from chatcache.token_ids import TokenIds


class Block(Protocol):
    """K and V of a run of tokens in host memory, immutable."""

    @property
    def num_bytes(self) -> int: ...

    @property
    def has_states(self) -> bool:
        """Whether the checkpoint behind its last token is in it."""

    def sources(self) -> Sequence[TensorSource]:
        """The tensors for a segment file."""


class KVSink(Protocol):
    """The live KV, where a prefix is restored to. Positions are absolute."""

    def adopt(self, block: Any, num_tokens: int) -> bool:
        """Go on behind the first `num_tokens` of the path of a block where they lie, if they can be
        gone on with there; returns whether that is so."""

    def load(self, block: Any, at: int, start: int, stop: int) -> None:
        """Copy positions `start` to `stop` from a block whose first position is `at`."""

    def writable(
        self, name: str, dtype: str, shape: tuple[int, ...], start: int
    ) -> list[memoryview]:
        """Memory, a piece per head, for `[num_kv_heads, num_tokens, head_dim]` at `start`.

        Raises ValueError if the tensor does not fit the model."""

    def written(self, name: str, start: int) -> None:
        """The memory from `writable` is filled."""

    def set_length(self, num_tokens: int) -> None:
        """What was loaded or written up to here counts from now on."""

    def load_states(self, block: Any) -> None:
        """Put the checkpoint of a block back. Raises ValueError if it is not one of the model."""

    def writable_state(self, name: str, dtype: str, shape: tuple[int, ...]) -> memoryview:
        """Memory for a tensor of a checkpoint. Raises ValueError if the model has no such."""

    def states_written(self) -> None:
        """The memory from `writable_state` is filled. Raises ValueError if some is missing."""


@dataclass(slots=True)
class Entry:
    """A segment that is in RAM (`block`), on disk (`path`), or both."""

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

    @property
    def is_held(self) -> bool:
        """Nothing may take it away."""
        return self.num_leases > 0 or self.is_pinned

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
    """

    def __init__(
        self,
        ids: TokenIds,
        spans: Sequence[Span],
        num_matched: int,
        checkpoint: Span | None = None,
        disk: tuple[int, int] | None = None,
    ):
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
    """How far a restore got. `problem` is why it ended before the end of the lease."""

    num_tokens: int
    ram_tokens: int
    disk_tokens: int
    bytes_read: int
    problem: str | None = None
    is_damage: bool = False
