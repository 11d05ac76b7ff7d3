"""From segments into the live KV: tokens from RAM blocks and files, then the checkpoint behind.

Owns the order of it, and what happens where a segment turns out to be gone or damaged: it is given
up, and the live KV holds exactly the tokens before it. What may be restored was decided before.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from chatcache.cache.book.entries import Entry, Lease, RestoreResult
from chatcache.cache.book.segment_book import SegmentBook
from chatcache.cache.book.transfer_rate import NO_TRANSFER, Transfer
from chatcache.cache.files.reader import read_segment, read_states
from chatcache.cache.files.segfile import (
    SegmentDamagedError,
    SegmentFormatError,
    SegmentMissingError,
)
from chatcache.cache.files.store import inode_of
from chatcache.cache.segments import Block, KVSink, LostBlockError, Resident, Span
from chatcache.cache.views import Tier, TierRun, joined

# A segment, what is wrong with it, and the inode of its file if it is the file that is damaged.
GiveUp = Callable[[Entry, str, int | None], None]


class _Source:
    """Where a segment lies now, and giving it up."""

    def __init__(self, book: SegmentBook, give_up: GiveUp, segment_id: str):
        self._give_up = give_up
        self._entry = book.get(segment_id)
        self.block: Block | None = None if self._entry is None else self._entry.block
        self.resident: Resident | None = None if self._entry is None else self._entry.resident
        self.path: Path | None = None if self._entry is None else self._entry.path
        self._inode = 0 if self.path is None else inode_of(self.path)

    @property
    def start(self) -> int:
        return 0 if self._entry is None else self._entry.start

    def bytes_of(self, num_tokens: int) -> int:
        """About how many bytes so many of its tokens take."""
        entry = self._entry
        return 0 if entry is None else entry.num_bytes * num_tokens // (entry.stop - entry.start)

    def note_read(self, book: SegmentBook, span: Span, num_bytes: int) -> None:
        if self._entry is not None:
            book.log.note("restored", self._entry, "disk", num_bytes=num_bytes, span=span)

    def failed(self, error: Exception) -> bool:
        """Give the segment up; returns whether its file is damaged (and not merely gone)."""
        is_newer = isinstance(error, SegmentFormatError)
        is_damage = isinstance(error, SegmentDamagedError) and not is_newer
        if self._entry is not None:
            self._give_up(self._entry, str(error), self._inode if is_damage else None)
        return is_damage


def adopt_tokens(book: SegmentBook, lease: Lease, sink: KVSink, start: int) -> int:
    """Have `sink`, which holds `start` tokens of the lease, go on where more of them lie already;
    returns how many it then holds. Nothing is moved."""
    for span in reversed(lease.spans):
        if span.stop <= start:
            break
        entry = book.get(span.segment_id)
        block = None if entry is None else entry.block
        if block is not None and sink.adopt(block, span.stop):
            return span.stop
    return start


def restore_tokens(
    book: SegmentBook, give_up: GiveUp, lease: Lease, sink: KVSink, start: int
) -> RestoreResult:
    """Bring positions `start` to the end of the lease into `sink`, which holds `start` tokens."""
    restored = _bring_tokens(book, give_up, lease, sink, start)
    sink.flush()
    return restored


def _bring_tokens(
    book: SegmentBook, give_up: GiveUp, lease: Lease, sink: KVSink, start: int
) -> RestoreResult:
    position, bytes_read = start, 0
    runs = [TierRun(start, "ram")]
    transfers: dict[Tier, Transfer] = {}
    for span in lease.spans:
        if span.stop <= position:
            continue
        source = _Source(book, give_up, span.segment_id)
        began = time.perf_counter()
        num_bytes = source.bytes_of(span.stop - position)
        try:
            if source.resident is not None:
                sink.load(source.resident, source.start, position, span.stop)
                tier: Tier = "vram"
            elif source.block is not None:
                sink.load(source.block, source.start, position, span.stop)
                tier = "ram"
            elif source.path is not None:
                num_bytes = read_segment(source.path, lease.ids, sink, position, span)
                if lease.is_use:
                    source.note_read(book, replace(span, start=position), num_bytes)
                bytes_read, tier = bytes_read + num_bytes, "disk"
            else:
                raise SegmentMissingError("it was evicted")
        except (SegmentDamagedError, SegmentMissingError, LostBlockError) as error:
            sink.set_length(position)
            is_damage = source.failed(error)
            return RestoreResult(
                position, joined(runs), bytes_read, str(error), is_damage, transfers
            )
        position = span.stop
        runs.append(TierRun(position, tier))
        sink.set_length(position)
        took = Transfer(num_bytes, time.perf_counter() - began)
        transfers[tier] = transfers.get(tier, NO_TRANSFER).plus(took)
    return RestoreResult(position, joined(runs), bytes_read, transfers=transfers)


def restore_states(book: SegmentBook, give_up: GiveUp, lease: Lease, sink: KVSink) -> RestoreResult:
    """Bring the checkpoint at the end of the lease into `sink`, which holds all its tokens."""
    span, num_bytes = lease.checkpoint, 0
    if span is None:
        return RestoreResult(0, (), 0)
    source = _Source(book, give_up, span.segment_id)
    began = time.perf_counter()
    try:
        if source.block is not None:
            sink.load_states(source.block)
        elif source.path is not None:
            num_bytes = read_states(source.path, lease.ids, sink, span)
        else:
            raise SegmentMissingError("it was evicted")
    except (SegmentDamagedError, SegmentMissingError) as error:
        return RestoreResult(0, (), 0, str(error), source.failed(error))
    took = Transfer(num_bytes, time.perf_counter() - began)
    return RestoreResult(span.stop, (), num_bytes, transfers={"disk": took})
