"""The VRAM tier: runs of paths that are not live stay on the device, for a switch back to them.

What is on the device is in RAM or on disk as well, or will be soon: giving it up loses time only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from chatcache.cache.book.entries import Entry
from chatcache.cache.book.eviction import choose_victims
from chatcache.cache.book.policy import TierPolicy
from chatcache.cache.book.segment_book import SegmentBook
from chatcache.cache.segments import Resident
from chatcache.cache.tiers.notices import Notices
from chatcache.cache.views import TierUse
from chatcache.token_ids import TokenIds

log = logging.getLogger(__name__)


@dataclass(slots=True)
class VramTier:
    """The residents of the book, at most `budget` bytes of them; 0: there is no such tier."""

    book: SegmentBook
    budget: int
    policy: TierPolicy
    notices: Notices
    clock: Callable[[], float]

    def use(self) -> TierUse | None:
        """None: there is no such tier."""
        if not self.budget:
            return None
        residents = self._residents()
        return TierUse(sum(num_bytes for _, num_bytes in residents), self.budget, len(residents))

    def keep(
        self,
        ids: TokenIds,
        num_staying: int,
        reside: Callable[[int, int], Resident],
        token_bytes: int,
    ) -> None:
        """The live path `ids` is about to be cut after `num_staying` tokens: its segments that go
        on behind stay on the device, as `reside(start, stop)` copies them, where there is room.
        `token_bytes`: how much of it a token takes there."""
        if not self.budget:
            return
        with self.book.lock:
            for span in self.book.match(ids).spans:
                entry = self.book[span.segment_id]
                is_whole = (span.start, span.stop) == (entry.start, entry.stop)
                if span.stop <= num_staying or not is_whole or entry.resident is not None:
                    continue
                if not self._make_room(token_bytes * (entry.stop - entry.start)):
                    return
                try:
                    entry.resident = reside(entry.start, entry.stop)
                    self.book.log.note("restored", entry, "vram")
                except (MemoryError, RuntimeError) as error:  # torch says the latter
                    log.info("the device has no room for a path that is left: %s", error)
                    self.give_up()
                    return

    def give_up(self) -> bool:
        """Let go of everything on the device, because memory is short there; whether there was
        anything."""
        with self.book.lock:
            found = self.book.in_vram()
            for entry in found:
                self._evict(entry)
            return bool(found)

    def _make_room(self, num_bytes: int) -> bool:
        """Give up what is over, and then leaves and the least recently used ones first, until so
        much has room; False: it will have none."""
        now, ttl = self.clock(), self.policy.ram_ttl
        residents = self._residents()
        excess = sum(size for _, size in residents) + num_bytes - self.budget
        candidates = [found.candidate(size, ttl) for found, size in residents]
        victims = choose_victims(candidates, max(0, excess), now)
        if sum(victim.num_bytes for victim in victims) < excess:
            return False
        for victim in victims:
            self._evict(self.book[victim.segment_id])
        return True

    def _evict(self, entry: Entry) -> None:
        entry.resident = None
        is_gone = self.book.remove_if_gone(entry)
        self.book.log.note("evicted", entry, "vram", is_gone=is_gone)
        if is_gone:
            self.notices.tell_evicted([entry.stop - entry.start], "VRAM", is_expired=False)

    def _residents(self) -> list[tuple[Entry, int]]:
        return [
            (entry, entry.resident.num_bytes)
            for entry in self.book.entries()
            if entry.resident is not None
        ]
