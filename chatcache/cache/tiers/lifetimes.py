"""Times to live: where a segment can still be used, and giving up the copies whose time is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from chatcache.cache.book.entries import Entry
from chatcache.cache.book.policy import TierPolicy
from chatcache.cache.book.segment_book import SegmentBook
from chatcache.cache.tiers.disk import DiskTier
from chatcache.cache.tiers.notices import Notices
from chatcache.cache.tiers.spiller import Spiller


@dataclass(frozen=True, slots=True)
class Lifetimes:
    book: SegmentBook
    disk: DiskTier
    spiller: Spiller
    policy: TierPolicy
    notices: Notices
    clock: Callable[[], float]

    def place(self, entry: Entry) -> Literal["ram", "disk"] | None:
        """The fastest tier that holds a segment whose time is not over; None: there is none."""
        now = self.clock()
        if entry.is_in_memory and not entry.is_over(self.policy.ram_ttl, now):
            return "ram"
        if entry.path is not None:
            return None if entry.is_over(self.policy.disk_ttl, now) else "disk"
        return "ram" if entry.block is not None and self.spiller.can_write(entry) else None

    def drop_expired(self, entry: Entry) -> bool:
        """Give up the copies of a segment whose time is over; True if none is left."""
        with self.book.lock:
            now = self.clock()
            before = entry.tiers
            if entry.path is not None and entry.is_over(self.policy.disk_ttl, now):
                self.disk.note_use_by_others(entry)
                if entry.is_over(self.policy.disk_ttl, now):
                    self.disk.give_up(entry)
            if entry.is_over(self.policy.ram_ttl, now):
                entry.resident = None
                if entry.path is not None or not self.spiller.can_write(entry):
                    entry.block = None
                else:
                    self.spiller.submit(entry)
            is_gone = self.book.remove_if_gone(entry)
            lost = [tier for tier in before if tier not in entry.tiers]
            for tier in lost:
                last = is_gone and tier == lost[-1]
                self.book.log.note("evicted", entry, tier, is_gone=last)
            if is_gone:
                self.notices.note_expired(entry)
            return is_gone
