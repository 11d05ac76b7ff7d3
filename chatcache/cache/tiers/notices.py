"""What became of segments: told to people as it happens, and remembered to explain misses by it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection

from chatcache import formatting
from chatcache.cache.files.names import Named
from chatcache.cache.files.store import LostSegment

_MAX_REMEMBERED = 1000
_EXPIRED = "was not used within its time to live"


class Notices:
    """`tell` hears a kind ("warning", "spilled", "evicted", "quarantined") and a sentence."""

    def __init__(self, tell: Callable[[str, str], None]):
        self.tell = tell
        self.damaged: list[LostSegment] = []
        self.expired: deque[LostSegment] = deque(maxlen=_MAX_REMEMBERED)
        self._warned: set[str] = set()

    def warn(self, text: str) -> None:
        self.tell("warning", text)

    def warn_once(self, topic: str, text: str) -> None:
        """Warn, unless it was done since the topic was `settled`."""
        if topic not in self._warned:
            self._warned.add(topic)
            self.warn(text)

    def settled(self, topic: str) -> None:
        self._warned.discard(topic)

    def note_expired(self, segment: Named) -> None:
        file = LostSegment(segment.segment_id, segment.start, segment.stop, _EXPIRED)
        self.expired.append(file)

    def tell_evicted(self, lengths: Collection[int], where: str, *, is_expired: bool) -> None:
        """Segments of so many tokens each were given up."""
        if lengths:
            why = ", their time is over" if is_expired else ""
            self.tell("evicted", f"evicted {sum(lengths):,} tokens ({where}{why})")

    def warn_of_pins(self, pinned_bytes: int, where: str, budget: int) -> None:
        if pinned_bytes > budget:
            self.warn_once(
                where,
                f"pinned segments take {formatting.size(pinned_bytes)} of {where}, "
                f"more than the budget of {formatting.size(budget)}",
            )
