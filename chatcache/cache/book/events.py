"""The last changes of a tree, as they were decided.

Owns their numbers, their times and their bound. Knows neither why something changed nor who asks.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from chatcache.cache.book.entries import Entry
from chatcache.cache.segments import Span
from chatcache.cache.views import Tier, TreeChange, TreeEvent
from chatcache.token_ids import NO_IDS, TokenIds

MAX_EVENTS = 256
TAIL_IDS = 8


class TreeLog:
    """Bounded, thread-safe. An event costs the same however many tokens it is about."""

    def __init__(self, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._lock = threading.Lock()
        self._events: deque[TreeEvent] = deque(maxlen=MAX_EVENTS)
        self._num_noted = 0

    def last(self, limit: int) -> tuple[TreeEvent, ...]:
        """At most so many, the oldest first."""
        with self._lock:
            return tuple(self._events)[-limit:] if limit > 0 else ()

    def clear(self) -> None:
        """Of what was deleted, nothing stays in memory, not even the end of its path."""
        with self._lock:
            self._events.clear()

    def note(
        self,
        change: TreeChange,
        entry: Entry,
        tier: Tier | None = None,
        *,
        num_bytes: int | None = None,
        span: Span | None = None,
        is_gone: bool = False,
    ) -> None:
        """Something has happened to a segment, or to a `span` of it; `is_gone`: it lies nowhere any
        more."""
        start, stop = (entry.start, entry.stop) if span is None else (span.start, span.stop)
        self._append(
            TreeEvent(
                0,
                0.0,
                change,
                start,
                stop,
                tier,
                _tail(entry.token_ids, stop - entry.start),
                entry.num_bytes if num_bytes is None else num_bytes,
                (entry.segment_id,),
                entry.parent_id or "",
                entry.token_ids if is_gone else NO_IDS,
                is_gone=is_gone,
            )
        )

    def note_split(self, start: int, ids: TokenIds, cut: int, segment_ids: Sequence[str]) -> None:
        """An edge with these ids was split at position `cut`; its segments stay whole."""
        tail, segments = _tail(ids, cut - start), tuple(segment_ids)
        stop = start + len(ids)
        self._append(
            TreeEvent(0, 0.0, "split", start, stop, None, tail, segments=segments, cut=cut)
        )

    def note_hit(self, ids: TokenIds, spans: Sequence[Span], tier: Tier) -> None:
        """A prompt goes on from these spans; `tier` is the slowest that it needs."""
        segments = tuple(dict.fromkeys(span.segment_id for span in spans))
        stop = spans[-1].stop
        tail = _tail(ids, stop)
        self._append(TreeEvent(0, 0.0, "hit", 0, stop, tier, tail, segments=segments))

    def _append(self, event: TreeEvent) -> None:
        with self._lock:
            self._num_noted += 1
            self._events.append(replace(event, number=self._num_noted, at=self._clock()))


def _tail(ids: TokenIds, stop: int) -> TokenIds:
    return ids[max(0, stop - TAIL_IDS) : stop]
