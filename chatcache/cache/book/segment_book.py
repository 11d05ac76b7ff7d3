"""The book of a namespace: the segments that are held or that a prompt has reached, and their tree.

It owns the entries, the tree over them, what is pinned, the one lock of it all, and the log in
which those who decide note what they did. It decides
nothing: budgets evict from it, and it knows neither files nor tensors. Every method takes the lock
itself; callers that need several steps to be one take it around them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Container, Iterator, Sequence

from chatcache.cache.book.entries import Entry
from chatcache.cache.book.events import TreeLog
from chatcache.cache.book.radix import MatchResult, RadixTree
from chatcache.cache.segments import Span
from chatcache.token_ids import TokenIds


class SegmentBook:
    """Entries by segment id, and the tree over those that can be matched."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.lock = threading.RLock()
        self.log = TreeLog(clock)
        self._tree = RadixTree(self.log.note_split)
        self._entries: dict[str, Entry] = {}
        self._pinned: frozenset[str] = frozenset()

    def __contains__(self, segment_id: str) -> bool:
        return segment_id in self._entries

    def __getitem__(self, segment_id: str) -> Entry:
        return self._entries[segment_id]

    def get(self, segment_id: str) -> Entry | None:
        return self._entries.get(segment_id)

    def entries(self) -> list[Entry]:
        with self.lock:
            return list(self._entries.values())

    def in_ram(self) -> list[Entry]:
        return [entry for entry in self.entries() if entry.block is not None]

    def in_vram(self) -> list[Entry]:
        return [entry for entry in self.entries() if entry.resident is not None]

    def on_disk(self) -> list[Entry]:
        return [entry for entry in self.entries() if entry.path is not None]

    # paths

    def match(self, ids: TokenIds) -> MatchResult:
        """The spans that hold the leading ids, up to the first id that none holds."""
        with self.lock:
            return self._tree.match(ids)

    def ending_on(self, ids: TokenIds) -> list[Span]:
        """The segments whose last position lies on the held run of leading ids, whole, in order."""
        with self.lock:
            return self._tree.ending_on(ids)

    def extents(self, ids: TokenIds) -> dict[str, int]:
        """How far the held run of leading ids goes along each segment on it, by segment id."""
        with self.lock:
            return self._tree.extents(ids)

    def path(self, segment_id: str) -> TokenIds:
        """All ids from the root to the last position of a segment."""
        with self.lock:
            return self._tree.path(segment_id)

    def tree(self) -> RadixTree:
        """A copy of the tree, as it is now."""
        with self.lock:
            return self._tree.copy()

    def lineage(self, segment_id: str) -> list[Entry]:
        """A segment and those that it builds on, the last one first."""
        with self.lock:
            ids = lineage(segment_id, lambda known: self._entries[known].parent_id, self._entries)
            return [self._entries[known] for known in ids]

    # what is in it

    def add(self, path: TokenIds, entry: Entry) -> None:
        """Enter a segment that holds a path from its start on. Its parent is the one that it names,
        or one that holds the position before. Raises ValueError if the path up to its start is
        unknown."""
        with self.lock:
            self._tree.insert(path, entry.segment_id, entry.start)
            entry.parent_id = entry.parent_id or self._tree.parent_segment(entry.segment_id)
            entry.is_pinned = entry.segment_id in self._pinned
            self._entries[entry.segment_id] = entry
            self.log.note("inserted", entry, "disk" if entry.block is None else "ram")

    def remove(self, entry: Entry) -> None:
        with self.lock:
            self._tree.remove(entry.segment_id)
            self._entries.pop(entry.segment_id, None)

    def remove_if_gone(self, entry: Entry) -> bool:
        """Remove a segment that lies nowhere any more; returns whether that is so."""
        if entry.is_in_memory or entry.path is not None:
            return False
        self.remove(entry)
        return True

    @property
    def pinned(self) -> frozenset[str]:
        """The ids that are pinned, in the book or not."""
        return self._pinned

    def set_pinned(self, pinned: frozenset[str]) -> None:
        with self.lock:
            for segment_id in pinned ^ self._pinned:
                if (entry := self._entries.get(segment_id)) is not None:
                    entry.is_pinned = segment_id in pinned
            self._pinned = pinned

    @contextlib.contextmanager
    def held(self, entries: Sequence[Entry]) -> Iterator[None]:
        """While the block runs, nothing takes these away."""
        with self.lock:
            for entry in entries:
                entry.num_leases += 1
        try:
            yield
        finally:
            with self.lock:
                for entry in entries:
                    entry.num_leases -= 1

    def check(self) -> list[str]:
        """Everything that is wrong with it; empty when it is sound."""
        with self.lock:
            problems = self._tree.check()
            for entry in self._entries.values():
                if not entry.is_in_memory and entry.path is None:
                    problems.append(f"{entry.segment_id} is neither in RAM nor on disk")
                if entry.num_leases < 0:
                    problems.append(f"{entry.segment_id} was released too often")
            return problems


def lineage(
    segment_id: str, parent_of: Callable[[str], str | None], known: Container[str]
) -> list[str]:
    """The ids of a segment and of those that it builds on, as far as they are known."""
    found: dict[str, None] = {}
    ancestor: str | None = segment_id
    while ancestor is not None and ancestor in known and ancestor not in found:
        found[ancestor] = None
        ancestor = parent_of(ancestor)
    return list(found)
