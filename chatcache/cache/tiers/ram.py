"""The RAM tier: how much memory blocks may take, how long, and what goes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chatcache.cache.book.eviction import choose_victims
from chatcache.cache.book.policy import LOW_WATER, TierPolicy
from chatcache.cache.book.segment_book import SegmentBook
from chatcache.cache.tiers.notices import Notices
from chatcache.cache.tiers.spiller import Spiller
from chatcache.cache.views import TierUse


@dataclass(frozen=True, slots=True)
class RamTier:
    """The blocks of the book; what is not on disk is written by the spiller before it goes."""

    book: SegmentBook
    spiller: Spiller
    budget: int
    policy: TierPolicy
    notices: Notices
    clock: Callable[[], float]

    def use(self) -> TierUse:
        in_ram = self.book.in_ram()
        return TierUse(sum(entry.num_bytes for entry in in_ram), self.budget, len(in_ram))

    def enforce(self) -> None:
        """Give up blocks whose time is over and, over the budget, leaves and least recently used
        ones first until there is some room again. What is not on disk is written before."""
        with self.book.lock:
            in_ram = self.book.in_ram()
            used, now, ttl = sum(e.num_bytes for e in in_ram), self.clock(), self.policy.ram_ttl
            excess = 0
            self.spiller.pace.is_pressed = used > self.budget
            if used > self.budget:
                excess = used - int(self.budget * LOW_WATER)
                pinned = sum(entry.num_bytes for entry in in_ram if entry.is_pinned)
                self.notices.warn_of_pins(pinned, "memory", self.budget)
            if not excess and not any(entry.is_over(ttl, now) for entry in in_ram):
                return
            candidates = [entry.candidate(entry.num_bytes, ttl) for entry in in_ram]
            for victim in choose_victims(candidates, excess, now):
                entry = self.book[victim.segment_id]
                if entry.path is None and self.spiller.can_write(entry):
                    self.spiller.submit(entry)
                    continue
                is_expired = entry.is_over(ttl, now)
                entry.block = None
                is_gone = self.book.remove_if_gone(entry)
                self.book.log.note("evicted", entry, "ram", is_gone=is_gone)
                if is_gone:
                    if is_expired:
                        self.notices.note_expired(entry)
                    length = entry.stop - entry.start
                    self.notices.tell_evicted([length], "RAM", is_expired=is_expired)

    def forget_deleted(self, *, is_all: bool) -> None:
        """Give up the segments whose files are gone; with `is_all`, what was never written as well.
        What is held (pinned, leased) of the latter stays."""
        with self.book.lock:
            for entry in self.book.entries():
                is_gone = not entry.path.exists() if entry.path is not None else is_all
                if is_gone and not (entry.path is None and entry.is_held):
                    self.book.remove(entry)
            self.book.log.clear()
