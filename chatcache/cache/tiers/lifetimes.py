"""Times to live: where a segment can still be used, and giving up the copies whose time is over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from chatcache.cache.book.entries import Entry
from chatcache.cache.book.policy import TierPolicy
from chatcache.cache.book.segment_book import SegmentBook
from chatcache.cache.tiers.disk import DiskTier
from chatcache.cache.tiers.notices import Notices
from chatcache.cache.tiers.spiller import Spiller


class Lifetimes:
    def __init__(
        self,
        book: SegmentBook,
        disk: DiskTier,
        spiller: Spiller,
        policy: TierPolicy,
        notices: Notices,
        clock: Callable[[], float],
    ):
        self._book = book
        self._disk = disk
        self._spiller = spiller
        self._policy = policy
        self._notices = notices
        self._clock = clock

    def place(self, entry: Entry) -> Literal["ram", "disk"] | None:
        """The fastest tier that holds a segment whose time is not over; None: there is none."""
        now = self._clock()
        if entry.block is not None and not entry.is_over(self._policy.ram_ttl, now):
            return "ram"
        if entry.path is not None:
            return None if entry.is_over(self._policy.disk_ttl, now) else "disk"
        return "ram" if entry.block is not None and self._spiller.can_write(entry) else None

    def drop_expired(self, entry: Entry) -> bool:
        """Give up the copies of a segment whose time is over; True if none is left."""
        with self._book.lock:
            now = self._clock()
            if entry.path is not None and entry.is_over(self._policy.disk_ttl, now):
                self._disk.note_use_by_others(entry)
                if entry.is_over(self._policy.disk_ttl, now):
                    self._disk.give_up(entry)
            if entry.is_over(self._policy.ram_ttl, now):
                if entry.path is not None or not self._spiller.can_write(entry):
                    entry.block = None
                else:
                    self._spiller.submit(entry)
            is_gone = self._book.remove_if_gone(entry)
            if is_gone:
                self._notices.note_expired(entry)
            return is_gone
